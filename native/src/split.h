// Q8_0 in two parts, for a weight of which only the largest products are wanted: the head of a decoder.
//
// A quant is 8 h + r, with h from -16 to 15 and r from -4 to 7. The h are a Q5_0 weight with the scale 8 d, in panels.
// The r lie row by row, each row with its scales, so that one can be read alone. By Cauchy and Schwarz the r add at
// most |d r| |x| to a product, so that the h alone tell which rows may have the largest ones.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace gemwright {

constexpr std::string_view kSplitName = "Q8_0_SPLIT";

// Where the parts of a packed weight [out, in] lie, `in` a multiple of 32.
struct Split {
  int64_t out, in;
  int64_t panels_size;  // bytes of the Q5_0 panels, which come first
  int64_t errors;       // offset of [panels * 16] float32: what the r of a row add for an input of length 1
  int64_t fine;         // offset of the rows of r
  int64_t row_bytes;    // of each: a float16 for 32 values, then 64 bytes for each of `fine_groups`
  int64_t size;         // in all
};

// Nothing where the sizes are negative, too large or no whole number of blocks.
std::optional<Split> split_layout(int64_t out, int64_t in);

// Groups of four blocks of 32 values in a row. Value i of block b is half of byte `fine_byte(b, i)` of the row's r: the
// low half where i / 4 is even. Thus a lane of four bytes has eight values of one block, every fourth lane has the same
// block, and the sums of sixteen lanes are scaled once for 128 values.
constexpr int64_t fine_groups(int64_t in) { return (in + 127) / 128; }
constexpr int64_t fine_byte(int64_t b, int64_t i) { return b / 4 * 64 + i / 8 * 16 + b % 4 * 4 + i % 4; }
// A row's scales are loaded 16 at a time. The last load goes on into the r: no half of their bytes is above 11, so that
// as float16 they are finite, and come to nothing where the activations' scales are zero.
constexpr int64_t fine_scale_bytes(int64_t in) { return in / 32 * 2; }

// The same for a packed weight of `size` bytes with rows of `in` values.
std::optional<Split> split_of_size(int64_t size, int64_t in);

// Adds d r to y [in], which holds 8 d h: then it is d q exactly.
void add_fine(const Split& split, const uint8_t* packed, int64_t row, float* y);

// Writes rows [first, first + rows) of a weight from their Q8_0 blocks; `first` is a multiple of 16. False where a
// scale is too large to be multiplied by 8.
bool pack_split(const Split& split, const uint8_t* source, int64_t first, int64_t rows, uint8_t* packed, int threads);

// 128 values of a row of activations as the rows of r meet them: in two parts of 8 bits, the same that the panels meet.
// A row is `fine_groups` of these, with zeros past its end.
struct alignas(64) FineGroup {
  int8_t q[2][2][64];    // of each part those that meet the low halves of 64 bytes of r, and the high ones
  int32_t start[2][16];  // where sums begin, as the r are stored with 4 added
  float scales[2][4];    // of four blocks
};

// Rows of r, one after the other in memory.
struct FineRows {
  const uint8_t* first;
  int64_t count;
  int64_t bytes, scale_bytes, groups;  // of each: `row_bytes`, and by the functions above
};

// Products with one row of activations, and how far off they may be: by the row's error times `length`.
struct Scores {
  const float* y;
  const float* errors;  // null where y is exact
  float length;
};

// The sums of squares of a block's quants and of their r.
struct Squares {
  int32_t q, r;
};

struct SplitKernels {
  // The 32 quants of block b: 16 + h, and 4 + r to where they lie among the r of a row.
  Squares (*divide)(const uint8_t* quants, uint8_t* h, int64_t b, uint8_t* r);
  // y[i * stride + j] += the product of the i-th of `count` rows of activations with the j-th row of r, the same number
  // however many are taken together.
  void (*fine)(const FineRows&, const FineGroup* x, int64_t count, float* y, int64_t stride);
  // The largest score of each lane of `count` rows, a multiple of 16; never less than what is in `tops`.
  void (*tops)(const float* y, int64_t count, float* tops);
  // The rows of [first, last) whose score may reach `least`; gives their number.
  int64_t (*find)(const Scores&, int64_t first, int64_t last, float least, int32_t* found);
};

constexpr int64_t kMostScales = 2048;  // of a row that can be split, a multiple of 16

}  // namespace gemwright
