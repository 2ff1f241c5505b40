// Kernels for the fine part of a split weight (ops/split.h).
#pragma once

#include <cstdint>

namespace gemwright {

// A row holds its remainders in groups of four blocks of 32 values. Value i of block b is a nibble of byte
// `fine_byte(b, i)`: the low one if i / 4 is even. A lane of four bytes then holds eight values of one block, every
// fourth lane belongs to the same block, and the sums of sixteen lanes are scaled once per 128 values.
constexpr int64_t fine_groups(int64_t in) { return (in + 127) / 128; }
constexpr int64_t fine_byte(int64_t b, int64_t i) { return b / 4 * 64 + i / 8 * 16 + b % 4 * 4 + i % 4; }
// Bytes of a row's scales. They are loaded 16 at a time, and the last load may run into the remainders. None of their
// nibbles exceeds 11, so read as float16 they are finite, and the activations' scales there are zero.
constexpr int64_t fine_scale_bytes(int64_t in) { return in / 32 * 2; }
constexpr int64_t kMaxScales = 2048;  // scales per row of a weight that can be split, a multiple of 16

// 128 activations of one row as two 8-bit parts, the same that the panels are multiplied by. A row is `fine_groups` of
// these, padded with zeros.
struct alignas(64) FineGroup {
  int8_t q[2][2][64];    // per part: for the low nibbles of 64 bytes of remainders, then for the high ones
  int32_t start[2][16];  // initial sums, because remainders are stored with 4 added
  float scales[2][4];    // per block
};

// Consecutive rows of remainders.
struct FineRows {
  const uint8_t* first;
  int64_t count;
  int64_t bytes, scale_bytes, groups;  // per row
};

// Products with one row of activations; product i is off by errors[i] * length at most.
struct Scores {
  const float* y;
  const float* errors;  // null if y is exact
  float length;
};

// Sums of squares of a block's quants and of their remainders.
struct Squares {
  int32_t q, r;
};

struct SplitKernels {
  // Splits the 32 quants of block b: 16 + h into `h`, 4 + r into its place among a row's remainders.
  Squares (*split_block)(const uint8_t* quants, uint8_t* h, int64_t b, uint8_t* r);
  // y[i * stride + j] += dot(row i of `count` rows of activations, row j of the remainders). The result does not depend
  // on `count`.
  void (*fine)(const FineRows&, const FineGroup* x, int64_t count, float* y, int64_t stride);
  // Raises `maxima` [16] to the largest score of each lane. `count` is a multiple of 16.
  void (*lane_maxima)(const float* y, int64_t count, float* maxima);
  // Finds the rows in [first, last) whose score may reach `threshold`, and returns their number.
  int64_t (*find_candidates)(const Scores&, int64_t first, int64_t last, float threshold, int32_t* found);
};

}  // namespace gemwright
