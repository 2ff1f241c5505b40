// Products of many rows of integer activations with a panel that is decoded once for all of them. Include it after the
// header of an instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/activations.h"
#include "kernels/decode.h"
#include "kernels/kernels.h"
#include "kernels/tiles.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {

constexpr int kDecoded = 8;  // stripes of a panel that are decoded at a time: 6 or 10 KB of the first-level cache

template <class Integer>
struct alignas(64) DecodedStripe {
  Integer q[kStripe * kLanes];
  float scale[2][kLanes], min[kLanes];
};

// Adds the product of a stripe and `Rows` rows of activations to y.
template <class Integers, class Format, int Rows>
inline void accumulate_decoded(const DecodedStripe<typename Integers::Weight>& w,
                               const typename Integers::Activations* a, Floats (&y)[Rows]) {
  unroll<kStripe / Format::kScaled>([&](auto part) GEMWRIGHT_INLINE {
    Ints sum[Rows];
    for (int r = 0; r < Rows; ++r) sum[r] = broadcast(a[r].start[part]);
    Integers::template add_products<Format, part>(w.q, a, sum);
    const Floats scale = load(w.scale[part]);
    for (int r = 0; r < Rows; ++r) {
      y[r] = multiply_add(to_float(sum[r]) * broadcast(a[r].scale), scale, y[r]);
    }
  });
  if constexpr (Format::kMinima) {
    const Floats min = load(w.min);
    for (int r = 0; r < Rows; ++r) y[r] = multiply_add(min, broadcast(-a[r].sum), y[r]);
  }
}

// Multiplies one panel by rows [row, row + rows). `Integers` says how: the types `Weight` and `Activations`, the number of
// rows `kMostRows` whose sums stay in the cache, and for a format, `decode` of a stripe's weights and `add_products` of
// part of them to Ints[Rows].
template <class Integers, class Format>
void multiply_decoded(const MatmulArgs& args, int64_t panel, int64_t row, int64_t rows) {
  constexpr int kStripes = Format::kElements / kStripe;  // per block
  const auto* block = reinterpret_cast<const typename Format::Panel*>(args.panels + panel * args.panel_bytes);
  const auto* activations = static_cast<const typename Integers::Activations*>(args.tiles);
  const int64_t stripes = args.in / kStripe, column = panel * kLanes, lanes = smaller(kLanes, args.out - column);
  DecodedStripe<typename Integers::Weight> decoded[kDecoded];
  alignas(64) float sums[Integers::kMostRows][kLanes];
  std::memset(sums, 0, rows * sizeof(sums[0]));
  for (int64_t first = 0; first < stripes; first += kDecoded) {
    const int64_t count = smaller(kDecoded, stripes - first);
    for (int64_t s = 0; s < count; ++block) {
      const BlockScales<Format> scales(*block);
      for (int i = 0; i < kStripes; ++i, ++s) {
        const typename Format::Stripe& stripe = block->stripes[i];
        prefetch_ahead(stripe);
        Integers::template decode<Format>(stripe, decoded[s].q);
        unroll<kStripe / Format::kScaled>(
            [&](auto part) GEMWRIGHT_INLINE { store(decoded[s].scale[part], scales.template scale<part>(stripe)); });
        if constexpr (Format::kMinima) store(decoded[s].min, scales.dmin * load(stripe.min));
      }
    }
    for_each_tile(row, row + rows, [&](int64_t r, auto n) {
      const auto* a = activations + r * stripes + first * n;
      Floats sum[n];
      for (int i = 0; i < n; ++i) sum[i] = load(sums[r - row + i]);
      for (int64_t s = 0; s < count; ++s, a += n) accumulate_decoded<Integers, Format, n>(decoded[s], a, sum);
      for (int i = 0; i < n; ++i) store(sums[r - row + i], sum[i]);
    });
  }
  for (int64_t r = 0; r < rows; ++r) store_lanes(args.y + (row + r) * args.out + column, lanes, load(sums[r]));
}

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
