// Activations rounded to integers. Include it after the header of an instruction set.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/decode.h"
#include "kernels/format.h"
#include "kernels/kernels.h"
#include "kernels/tiles.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {

// Returns the place of value i of a stripe: 0, 2, 1, 3 of each four in 16 bits.
template <class Integer>
constexpr int place(int i) {
  return sizeof(Integer) == 1 ? i : (i & ~3) | (i & 1) << 1 | (i & 2) >> 1;
}

// Returns the largest of kStripe magnitudes, a NaN if there is one. Their bits order as they do, and an integer maximum
// vectorizes.
inline float largest_magnitude(const float* x) {
  int32_t largest = 0;
  for (int i = 0; i < kStripe; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  float magnitude;
  std::memcpy(&magnitude, &largest, 4);
  return magnitude;
}

// Rounds 32 activations for products with weights of a format.
template <class Format, class Integer>
void quantize(const float* x, Quantized<Integer>& a) {
  constexpr int kLargest = std::numeric_limits<Integer>::max();
  constexpr int kParts = kStripe / Format::kScaled;
  constexpr int kOffset = Format::kOffset + (kSignedWeights<Format> ? kSignedOffset : 0);
  const float magnitude = largest_magnitude(x), scale = magnitude / float(kLargest);
  const bool finite = magnitude <= FLT_MAX;  // false for NaN
  a.scale = finite ? scale : __builtin_nanf("");
  a.start[0] = a.start[1] = 0;
  a.sum = 0.0f;
  if (!finite || scale < FLT_MIN) {  // below, 1 / scale might be infinite
    std::memset(a.q, 0, sizeof(a.q));
    if (finite) a.scale = 0.0f;
    return;
  }
  const float inverse = 1.0f / scale;
  int32_t q[kStripe];
  for (int i = 0; i < kStripe; ++i) q[i] = int32_t(__builtin_rintf(x[i] * inverse));
  for (int i = 0; i < kStripe; ++i) a.q[place<Integer>(i)] = Integer(q[i]);
  for (int part = 0; part < kParts; ++part) {
    int32_t sum = 0;
    for (int i = 0; i < Format::kScaled; ++i) sum += q[part * Format::kScaled + i];
    a.start[part] = -kOffset * sum;
    a.sum += scale * float(sum);
  }
}

static_assert(kRowGroup % kRows == 0 && kRows % 2 == 0, "the two rows of a pair must be in one tile");

// Writes rows [row, row + rows) of x as tiles: one `Quantized` per stripe, those of a tile's rows adjacent.
template <class Format, class Integer>
void prepare(const MatmulArgs& args, int64_t row, int64_t rows) {
  const int64_t stripes = args.in / kStripe;
  for_each_tile(row, row + rows, [&](int64_t first, auto n) {
    auto* tile = static_cast<Quantized<Integer>*>(args.tiles) + first * stripes;
    for (int r = 0; r < n; ++r) {
      const float* x = args.x + (first + r) * args.in;
      for (int64_t s = 0; s < stripes; ++s) quantize<Format>(x + s * kStripe, tile[s * n + r]);
    }
  });
}

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
