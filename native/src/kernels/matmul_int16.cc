// Products with 16-bit activations, compiled once for each instruction set; empty for those that multiply 8-bit parts.
#include "kernels/kernels.h"

#include GEMWRIGHT_SIMD_HEADER
#include "kernels/activations.h"
#include "kernels/tiles.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {

extern const Int16Kernels int16;

#ifndef GEMWRIGHT_INT16
const Int16Kernels int16{};
#else
namespace {

constexpr int kDecoded = 8;  // stripes of a panel that are decoded at a time: 9 KB of the first-level cache

struct alignas(64) DecodedStripe {
  int16_t q[kStripe / 2][2 * kLanes];
  float scale[2][kLanes], min[kLanes];
};

template <class Format>
void decode_stripe(const BlockScales<Format>& scales, const typename Format::Stripe& stripe, DecodedStripe& to) {
  unroll<kStripe / 4>([&](auto g) GEMWRIGHT_INLINE {
    const Bytes q = group<g>(stripe.q);
    store(to.q[2 * g], widen_bytes<kSignedWeights<Format>, false>(q));
    store(to.q[2 * g + 1], widen_bytes<kSignedWeights<Format>, true>(q));
  });
  unroll<kStripe / Format::kScaled>(
      [&](auto part) GEMWRIGHT_INLINE { store(to.scale[part], scales.template scale<part>(stripe)); });
  if constexpr (Format::kMinima) store(to.min, scales.dmin * load(stripe.min));
}

// Adds the product of a stripe and `Rows` rows of activations to y.
template <class Format, int Rows>
inline void accumulate(const DecodedStripe& w, const Activations16* a, Floats (&y)[Rows]) {
  constexpr int kPairs = Format::kScaled / 2;
  for (int part = 0; part < kStripe / Format::kScaled; ++part) {
    Ints sum[Rows];
    for (int r = 0; r < Rows; ++r) sum[r] = broadcast(a[r].start[part]);
    unroll<kPairs>([&](auto p) GEMWRIGHT_INLINE {
      const Pairs pairs = load_pairs(w.q[part * kPairs + p]);
      for (int r = 0; r < Rows; ++r) sum[r] = dot(sum[r], pairs, a[r].q + 2 * (part * kPairs + p));
    });
    const Floats scale = load(w.scale[part]);
    for (int r = 0; r < Rows; ++r) {
      y[r] = multiply_add(to_float(sum[r]) * broadcast(a[r].scale), scale, y[r]);
    }
  }
  if constexpr (Format::kMinima) {
    const Floats min = load(w.min);
    for (int r = 0; r < Rows; ++r) y[r] = multiply_add(min, broadcast(-a[r].sum), y[r]);
  }
}

template <class Format>
void multiply_panel(const MatmulArgs& args, int64_t panel, int64_t row, int64_t rows) {
  constexpr int kStripes = Format::kElements / kStripe;  // per block
  const auto* block = reinterpret_cast<const typename Format::Panel*>(args.panels + panel * args.panel_bytes);
  const auto* activations = static_cast<const Activations16*>(args.tiles);
  const int64_t stripes = args.in / kStripe, column = panel * kLanes, lanes = smaller(kLanes, args.out - column);
  DecodedStripe decoded[kDecoded];
  alignas(64) float sums[kInt16Rows][kLanes];
  std::memset(sums, 0, rows * sizeof(sums[0]));
  for (int64_t first = 0; first < stripes; first += kDecoded) {
    const int64_t count = smaller(kDecoded, stripes - first);
    for (int64_t s = 0; s < count; ++block) {
      const BlockScales<Format> scales(*block);
      for (int i = 0; i < kStripes; ++i, ++s) {
        prefetch_ahead(block->stripes[i]);
        decode_stripe<Format>(scales, block->stripes[i], decoded[s]);
      }
    }
    for_each_tile(row, row + rows, [&](int64_t r, auto n) {
      const Activations16* a = activations + r * stripes + first * n;
      Floats sum[n];
      for (int i = 0; i < n; ++i) sum[i] = load(sums[r - row + i]);
      for (int64_t s = 0; s < count; ++s, a += n) accumulate<Format, n>(decoded[s], a, sum);
      for (int i = 0; i < n; ++i) store(sums[r - row + i], sum[i]);
    });
  }
  for (int64_t r = 0; r < rows; ++r) store_lanes(args.y + (row + r) * args.out + column, lanes, load(sums[r]));
}

template <class Format>
void matmul(const MatmulArgs& args, int64_t first, int64_t last, int64_t row, int64_t rows) {
  for (int64_t panel = first; panel < last; ++panel) multiply_panel<Format>(args, panel, row, rows);
}

template <class Format>
constexpr void add(Int16Kernels& table, Encoding encoding) {
  if constexpr (!Format::kPlain) {
    table.prepare[encoding] = prepare<Format, int16_t>;
    table.matmul[encoding] = matmul<Format>;
  }
}

constexpr Int16Kernels make_table() {
  Int16Kernels table{};
#define GEMWRIGHT_ADD(format) add<format>(table, k##format);
  GEMWRIGHT_FORMATS(GEMWRIGHT_ADD)
#undef GEMWRIGHT_ADD
  return table;
}

}  // namespace

const Int16Kernels int16 = make_table();
#endif

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
