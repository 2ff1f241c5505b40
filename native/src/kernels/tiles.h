// Tiles of rows and sums over them. Include it after the header of an instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/exponential.h"
#include "kernels/format.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {

// Rows and accumulators that fit the registers: fewer if a vector of sixteen lanes takes several registers.
constexpr int kRows = kTileRows < 8 ? 4 : 8;
constexpr int kSums = kTileRows < 8 ? 4 : 16;
static_assert(kRows <= kSums);

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Cuts rows [row, end) into tiles of kRows, then of smaller powers of two: body(first row, constant).
template <class Body>
inline void for_each_tile(int64_t row, int64_t end, Body body) {
  for (; end - row >= kRows; row += kRows) body(row, std::integral_constant<int, kRows>{});
  if constexpr (kRows > 4) {
    if (end - row >= 4) body(row, std::integral_constant<int, 4>{}), row += 4;
  }
  if (end - row >= 2) body(row, std::integral_constant<int, 2>{}), row += 2;
  if (end - row >= 1) body(row, std::integral_constant<int, 1>{});
}

// Load and store the lanes that exist: all 16 except in the last panel.
inline Floats load_lanes(const float* p, int64_t lanes) {
  if (lanes == kLanes) return load(p);
  float all[kLanes] = {};
  std::memcpy(all, p, lanes * sizeof(float));
  return load(all);
}
inline void store_lanes(float* p, int64_t lanes, Floats x) {
  if (lanes == kLanes) return store(p, x);
  float all[kLanes];
  store(all, x);
  std::memcpy(p, all, lanes * sizeof(float));
}

inline float widen(float x) { return x; }
inline float widen(Bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Prefetches keys or values, which are read once, some rows ahead. Past the end of the cache this does nothing; the
// address is an integer because a pointer past the end is undefined.
template <int64_t Bytes, class Number>
inline void prefetch_row(const Number* now, int64_t width) {
  constexpr int64_t kAhead = 16, kLine = 64;
  const auto ahead = reinterpret_cast<uintptr_t>(now) + kAhead * width * sizeof(Number);
  for (int64_t i = 0; i < Bytes; i += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(ahead + i));  // NOLINT(performance-no-int-to-ptr)
  }
}

// y = weights . values for `Rows` rows and `Columns` times sixteen columns from `column` on: weights [Rows, stride],
// values [count, width]. Adds to y unless this is the first part of the sum.
template <int Rows, int Columns, class Number>
inline void weighted_sum(const float* weights, int64_t stride, const Number* values, int64_t count, int64_t width,
                         float* const* y, int64_t column, bool first) {
  Floats sum[Rows][Columns];
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Columns; ++c) sum[r][c] = first ? zero() : load(y[r] + column + c * kLanes);
  }
  values += column;
  for (int64_t i = 0; i < count; ++i, values += width) {
    prefetch_row<Columns * kLanes * sizeof(Number)>(values, width);
    Floats value[Columns];
    for (int c = 0; c < Columns; ++c) value[c] = load(values + c * kLanes);
    for (int r = 0; r < Rows; ++r) {
      const Floats weight = broadcast(weights[r * stride + i]);
      for (int c = 0; c < Columns; ++c) sum[r][c] = multiply_add(weight, value[c], sum[r][c]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Columns; ++c) store(y[r] + column + c * kLanes, sum[r][c]);
  }
}

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
