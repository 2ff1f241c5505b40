// Kernels of products and look-ups, written once over sixteen lanes and compiled once for each instruction set.
//
// Everything is in a namespace named after the instruction set, and no inline function of the standard library is used,
// so that the linker never merges code of one instruction set into that of another.
#include <cstring>

#include "kernels/kernels.h"

#define GEMWRIGHT_STRING_(x) #x
#define GEMWRIGHT_STRING(x) GEMWRIGHT_STRING_(x)
#include GEMWRIGHT_SIMD_HEADER
#include "kernels/activations.h"
#include "kernels/decode.h"
#include "kernels/decoded.h"
#include "kernels/tiles.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {

extern const Bfloat16Kernels bfloat16;
extern const Int16Kernels int16;
extern const AttentionKernels attention;
extern const CrossEntropyKernels cross_entropy;
extern const RecurrenceKernels recurrence;
extern const RowKernels row;
extern const SplitKernels split;

namespace {

void prepare_exact(const MatmulArgs& args, int64_t row, int64_t rows) {
  for_each_tile(row, row + rows, [&](int64_t first, auto n) {
    float* tile = static_cast<float*>(args.tiles) + first * args.in;
    const float* x = args.x + first * args.in;
    for (int64_t i = 0; i < args.in; ++i) {
      for (int r = 0; r < n; ++r) *tile++ = x[r * args.in + i];
    }
  });
}

// ---- Integer products: one panel times `Rows` rows of activations.

template <class Format, int Rows>
inline void accumulate(const typename Format::Stripe& w, const BlockScales<Format>& scales, const Activations* a,
                       Floats (&y)[Rows]) {
  constexpr int kGroups = Format::kScaled / 4;
  unroll<kStripe / Format::kScaled>([&](auto part) GEMWRIGHT_INLINE {
    Ints sum[Rows];
    for (int r = 0; r < Rows; ++r) sum[r] = broadcast(a[r].start[part]);
    unroll<kGroups>([&](auto g) GEMWRIGHT_INLINE {
      constexpr int kGroup = part * kGroups + g;
      if constexpr (kSmallWeights<Format> && Rows == 1) {
        sum[0] = dot_small(sum[0], group<kGroup>(w.q), a->q + 4 * kGroup);
      } else if constexpr (kSignedWeights<Format>) {
        const Signed q = prepare_signed(group<kGroup>(w.q));
        for (int r = 0; r < Rows; ++r) sum[r] = dot_signed(sum[r], q, a[r].q + 4 * kGroup);
      } else {
        const Bytes q = group<kGroup>(w.q);
        for (int r = 0; r < Rows; ++r) sum[r] = dot(sum[r], q, a[r].q + 4 * kGroup);
      }
    });
    const Floats scale = scales.template scale<part>(w);
    for (int r = 0; r < Rows; ++r) {
      y[r] = multiply_add(to_float(sum[r]) * broadcast(a[r].scale), scale, y[r]);
    }
  });
  if constexpr (Format::kMinima) {
    const Floats min = scales.dmin * load(w.min);
    for (int r = 0; r < Rows; ++r) y[r] = multiply_add(min, broadcast(-a[r].sum), y[r]);
  }
}

template <class Format, int Rows>
void matmul_tile(const uint8_t* panel, const Activations* a, int64_t blocks, float* y, int64_t out, int64_t lanes,
                 bool paired, bool stream) {
  const auto* block = reinterpret_cast<const typename Format::Panel*>(panel);
  Floats sum[Rows];
  for (int r = 0; r < Rows; ++r) sum[r] = zero();
  for (int64_t b = 0; b < blocks; ++b, ++block) {
    const BlockScales<Format> scales(*block);
    for (const typename Format::Stripe& stripe : block->stripes) {
      if (stream) prefetch_ahead(stripe);  // a whole block at once would keep other loads waiting
      accumulate<Format, Rows>(stripe, scales, a, sum);
      a += Rows;
    }
  }
  if (paired) {
    for (int r = 0; r + 1 < Rows; r += 2) store_lanes(y + r / 2 * out, lanes, sum[r] + sum[r + 1]);
  } else {
    for (int r = 0; r < Rows; ++r) store_lanes(y + r * out, lanes, sum[r]);
  }
}

#ifdef GEMWRIGHT_PAIR_SUMS

// Of unsigned weights, adding as many products in 16 bits as cannot overflow.
struct Int8 {
  using Weight = uint8_t;
  using Activations = gemwright::Activations;
  static constexpr int64_t kMostRows = 512;

  template <class Format>
  static void decode(const typename Format::Stripe& stripe, uint8_t* q) {
    unroll<kStripe / 4>([&](auto g) GEMWRIGHT_INLINE { store(q + 4 * g * kLanes, group<g>(stripe.q)); });
  }

  template <class Format, int Part, int Rows>
  GEMWRIGHT_INLINE static void add_products(const uint8_t* q, const Activations* a, Ints (&sum)[Rows]) {
    constexpr int kGroups = Format::kScaled / 4;
    constexpr int kSummed = smaller(kGroups, 32767 / (2 * 127 * decltype(Format::Stripe::q)::kLargest));
    unroll<kGroups / kSummed>([&](auto s) GEMWRIGHT_INLINE {
      PairSums pairs[Rows];
      unroll<kSummed>([&](auto g) GEMWRIGHT_INLINE {
        constexpr int kGroup = Part * kGroups + s * kSummed + g;
        const Bytes bytes = load_bytes(q + 4 * kGroup * kLanes);
        for (int r = 0; r < Rows; ++r) {
          const PairSums more = multiply_pairs(bytes, a[r].q + 4 * kGroup);
          pairs[r] = g == 0 ? more : pairs[r] + more;
        }
      });
      for (int r = 0; r < Rows; ++r) sum[r] = add_pairs(sum[r], pairs[r]);
    });
  }
};

#endif

template <class Format>
void matmul(const MatmulArgs& args, int64_t first, int64_t last, int64_t row, int64_t rows) {
#ifdef GEMWRIGHT_PAIR_SUMS
  if constexpr (!kSignedWeights<Format>) {
    if (rows > kRows && rows <= Int8::kMostRows) {  // with equal results
      for (int64_t panel = first; panel < last; ++panel) multiply_decoded<Int8, Format>(args, panel, row, rows);
      return;
    }
  }
#endif
  const int64_t stripes = args.in / kStripe;
  for (int64_t panel = first; panel < last; ++panel) {  // a panel stays in the cache for all rows
    const int64_t column = panel * kLanes, lanes = smaller(kLanes, args.out - column);
    for_each_tile(row, row + rows, [&](int64_t r, auto n) {
      matmul_tile<Format, n>(args.panels + panel * args.panel_bytes,
                             static_cast<const Activations*>(args.tiles) + r * stripes, args.in / Format::kElements,
                             args.y + (args.paired ? r / 2 : r) * args.out + column, args.out, lanes, args.paired,
                             rows == n);
    });
  }
}

// ---- Products of decoded weights, in float32.

template <int Rows>
void exact_tile(const Tile& tile, int64_t count, const float* x, float* y, int64_t out, int64_t lanes, bool first) {
  constexpr int kChains = Rows < 4 ? 4 / Rows : 1;  // a single sum would wait for the latency of each step
  Floats sum[kChains][Rows];
  for (int c = 0; c < kChains; ++c) {
    for (int r = 0; r < Rows; ++r) sum[c][r] = c > 0 || first ? zero() : load_lanes(y + r * out, lanes);
  }
  const auto step = [&](int64_t i, int c) GEMWRIGHT_INLINE {
    const Floats w = load(tile[i]);
    for (int r = 0; r < Rows; ++r) sum[c][r] = multiply_add(w, broadcast(x[i * Rows + r]), sum[c][r]);
  };
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains) {
    for (int c = 0; c < kChains; ++c) step(i + c, c);
  }
  for (; i < count; ++i) step(i, 0);
  for (int r = 0; r < Rows; ++r) {
    for (int c = 1; c < kChains; ++c) sum[0][r] = sum[0][r] + sum[c][r];
    store_lanes(y + r * out, lanes, sum[0][r]);
  }
}

template <class Format>
void exact(const MatmulArgs& args, int64_t first, int64_t last, int64_t row, int64_t rows) {
  Tile tile;
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t column = panel * kLanes, lanes = smaller(kLanes, args.out - column);
    int64_t i = 0;
    do {  // at least once, so that y is written even if `in` is zero
      const int64_t count = smaller(kTileValues, args.in - i);
      decode<Format>(args.panels + panel * args.panel_bytes, i, count, tile);
      for_each_tile(row, row + rows, [&](int64_t r, auto n) {
        const float* x = static_cast<const float*>(args.tiles) + r * args.in + i * n;
        exact_tile<n>(tile, count, x, args.y + r * args.out + column, args.out, lanes, i == 0);
      });
      i += count;
    } while (i < args.in);
  }
}

// ---- Look-up.

// Decodes a panel once for each run of ids in it.
template <class Format>
void rows(const RowsArgs& args, int64_t first, int64_t last) {
  Tile tile;
  while (first < last) {
    const int64_t panel = args.ids[first] < 0 ? args.n_panels : args.ids[first] / kLanes;
    int64_t end = first + 1;
    if (panel >= args.n_panels) {
      for (int64_t i = 0; i < args.width; ++i) args.y[first * args.width + i] = __builtin_nanf("");
      first = end;
      continue;
    }
    while (end < last && args.ids[end] >= 0 && args.ids[end] / kLanes == panel) ++end;
    for (int64_t i = 0; i < args.width; i += kTileValues) {
      const int64_t count = smaller(kTileValues, args.width - i);
      decode<Format>(args.panels + panel * args.panel_bytes, i, count, tile);
      for (int64_t id = first; id < end; ++id) {
        float* y = args.y + id * args.width + i;
        for (int64_t k = 0; k < count; ++k) y[k] = tile[k][args.ids[id] % kLanes];
      }
    }
    first = end;
  }
}

template <class Format>
constexpr void add(Kernels& table, Encoding encoding) {
  table.exact[encoding] = exact<Format>;
  table.rows[encoding] = rows<Format>;
  if constexpr (!Format::kPlain) {
    table.prepare[encoding] = prepare<Format, int8_t>;
    table.matmul[encoding] = matmul<Format>;
  }
}

constexpr Kernels make_table() {
  Kernels table{GEMWRIGHT_STRING(GEMWRIGHT_ISA),
                supported,
                {},
                {},
                prepare_exact,
                {},
                {},
                int16,
                bfloat16,
                attention,
                recurrence,
                row,
                split,
                cross_entropy};
#define GEMWRIGHT_ADD(format) add<format>(table, k##format);
  GEMWRIGHT_FORMATS(GEMWRIGHT_ADD)
#undef GEMWRIGHT_ADD
  return table;
}

}  // namespace

extern const Kernels table;
constexpr Kernels table = make_table();

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
