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
  int64_t row_bytes;    // of each: a float16 for 32 values, then 64 bytes for each two of `fine_groups`
  int64_t size;         // in all
};

// Nothing where the sizes are negative, too large or no whole number of blocks.
std::optional<Split> split_layout(int64_t out, int64_t in);

// Groups of 64 values in a row, an even number: two share the low and the high halves of 64 bytes.
constexpr int64_t fine_groups(int64_t in) { return (in + 127) / 128 * 2; }
// Scales of a row as they are loaded, 16 at a time. The last load goes on into the r: no half of their bytes is above 11,
// so that as float16 they are finite, and come to nothing where the activations' scales are zero.
constexpr int64_t fine_scales(int64_t in) { return (in / 32 + 15) / 16 * 16; }
constexpr int64_t fine_scale_bytes(int64_t in) { return in / 32 * 2; }

// The same for a packed weight of `size` bytes with rows of `in` values.
std::optional<Split> split_of_size(int64_t size, int64_t in);

// Adds d r to y [in], which holds 8 d h: then it is d q exactly.
void add_fine(const Split& split, const uint8_t* packed, int64_t row, float* y);

// Writes rows [first, first + rows) of a weight from their Q8_0 blocks; `first` is a multiple of 16. False where a
// scale is too large to be multiplied by 8.
bool pack_split(const Split& split, const uint8_t* source, int64_t first, int64_t rows, uint8_t* packed, int threads);

// One row of activations as the rows of r meet it.
struct FineInput {
  int64_t groups, scale_bytes;  // of a row of r
  const int8_t* q;       // [groups * 64]
  const int32_t* start;  // [groups * 16] where sums begin, as the r are stored with 4 added
  const float* scales;   // [fine_scales], zeros at the end
  int64_t scale_count;
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
  // 32 quants: 16 + h, and 4 + r times `shift`, added to 32 bytes.
  Squares (*divide)(const uint8_t* quants, uint8_t* h, uint8_t shift, uint8_t* r);
  // y[i * stride] += the product of a row of r with the i-th of `count` rows of activations.
  void (*fine)(const uint8_t* row, const FineInput* x, int64_t count, float* y, int64_t stride);
  // The largest score of each lane of `count` rows, a multiple of 16; never less than what is in `tops`.
  void (*tops)(const float* y, int64_t count, float* tops);
  // The rows of [first, last) whose score may reach `least`; gives their number.
  int64_t (*find)(const Scores&, int64_t first, int64_t last, float least, int32_t* found);
};

constexpr int64_t kMostScales = 2048;  // of a row that can be split

}  // namespace gemwright
