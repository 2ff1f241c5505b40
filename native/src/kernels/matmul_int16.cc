// Products with 16-bit activations, compiled once for each instruction set; empty for those that multiply 8-bit parts.
#include "kernels/kernels.h"

#include GEMWRIGHT_SIMD_HEADER
#include "kernels/decoded.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {

extern const Int16Kernels int16;

#ifndef GEMWRIGHT_INT16
const Int16Kernels int16{};
#else
namespace {

struct Int16 {
  using Weight = int16_t;
  using Activations = Activations16;
  static constexpr int64_t kMostRows = kInt16Rows;

  template <class Format>
  static void decode(const typename Format::Stripe& stripe, int16_t* q) {
    unroll<kStripe / 4>([&](auto g) GEMWRIGHT_INLINE {
      const Bytes bytes = group<g>(stripe.q);
      store(q + 4 * g * kLanes, widen_bytes<kSignedWeights<Format>, false>(bytes));
      store(q + (4 * g + 2) * kLanes, widen_bytes<kSignedWeights<Format>, true>(bytes));
    });
  }

  template <class Format, int Part, int Rows>
  GEMWRIGHT_INLINE static void add_products(const int16_t* q, const Activations16* a, Ints (&sum)[Rows]) {
    constexpr int kPairs = Format::kScaled / 2;
    unroll<kPairs>([&](auto p) GEMWRIGHT_INLINE {
      constexpr int kPair = Part * kPairs + p;
      const Pairs pairs = load_pairs(q + 2 * kPair * kLanes);
      for (int r = 0; r < Rows; ++r) sum[r] = dot(sum[r], pairs, a[r].q + 2 * kPair);
    });
  }
};

template <class Format>
void matmul(const MatmulArgs& args, int64_t first, int64_t last, int64_t row, int64_t rows) {
  for (int64_t panel = first; panel < last; ++panel) multiply_decoded<Int16, Format>(args, panel, row, rows);
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
