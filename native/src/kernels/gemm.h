// Float32 products of packed matrices, both with the contracted axis first: a tile of the result stays in registers.
// Include it after the header of an instruction set.
#pragma once

#include <cstdint>

namespace gemwright {
namespace GEMWRIGHT_ISA {

// A tile has twelve to 24 accumulators; with the operands they fill the registers.
constexpr int kGemmVectors = kTileRows < 8 ? 1 : 2, kGemmRows = kTileRows < 4 ? 2 : kTileRows < 8 ? 6 : 12;
constexpr int kGemmColumns = kGemmVectors * kLanes;
constexpr int64_t kGemmDepth = 320;  // contracted at a time, so that the right operand stays in the first-level cache

// Packs x[rows, depth], which has these strides, as panels [depth, kGemmRows] at multiples of `panel_stride`. Missing
// rows of the last panel are zero.
inline void pack(const float* x, int64_t row_stride, int64_t depth_stride, int64_t rows, int64_t depth, float* packed,
                 int64_t panel_stride) {
  for (int64_t row = 0; row < rows; row += kGemmRows, x += kGemmRows * row_stride, packed += panel_stride) {
    const int64_t count = rows - row;
    for (int64_t k = 0; k < depth; ++k) {
      const float* from = x + k * depth_stride;
      float* to = packed + k * kGemmRows;
      if (count >= kGemmRows) {
        for (int i = 0; i < kGemmRows; ++i) to[i] = from[i * row_stride];
      } else {
        for (int i = 0; i < kGemmRows; ++i) to[i] = i < count ? from[i * row_stride] : 0.0f;
      }
    }
  }
}

// c = a^T b, or c += a^T b: a[depth, kGemmRows], b[depth, kGemmColumns], c[kGemmRows, kGemmColumns].
inline void multiply_tile(const float* a, const float* b, int64_t depth, bool add, float* c) {
  Floats sum[kGemmRows][kGemmVectors];
  for (int r = 0; r < kGemmRows; ++r) {
    for (int v = 0; v < kGemmVectors; ++v) sum[r][v] = add ? load(c + r * kGemmColumns + v * kLanes) : zero();
  }
  for (int64_t k = 0; k < depth; ++k, a += kGemmRows, b += kGemmColumns) {
    Floats right[kGemmVectors];
    for (int v = 0; v < kGemmVectors; ++v) right[v] = load(b + v * kLanes);
    for (int r = 0; r < kGemmRows; ++r) {
      const Floats left = broadcast(a[r]);
      for (int v = 0; v < kGemmVectors; ++v) sum[r][v] = multiply_add(left, right[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kGemmRows; ++r) {
    for (int v = 0; v < kGemmVectors; ++v) store(c + r * kGemmColumns + v * kLanes, sum[r][v]);
  }
}

// As `multiply_tile`, for packed rows a[rows / kGemmRows, depth, kGemmRows] and c[rows, kGemmColumns], rows padded.
inline void multiply_panel(const float* a, int64_t rows, const float* b, int64_t depth, bool add, float* c) {
  for (int64_t k = 0; k < depth; k += kGemmDepth) {
    const int64_t count = depth - k < kGemmDepth ? depth - k : kGemmDepth;
    for (int64_t row = 0; row < rows; row += kGemmRows) {
      multiply_tile(a + row * depth + k * kGemmRows, b + k * kGemmColumns, count, add || k > 0, c + row * kGemmColumns);
    }
  }
}

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
