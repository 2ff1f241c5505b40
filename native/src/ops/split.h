// Q8_0 split in two parts, for a decoder's output head, of which only the largest products are needed.
//
// A quant is 8 h + r, with h in -16..15 and r in -4..7. The h form a Q5_0 weight with scale 8 d, in panels. The
// remainders r follow row by row, each row with its scales, so that one row can be read alone. By the Cauchy-Schwarz
// inequality the r add at most |d r| |x| to a product, so the h alone tell which rows may have the largest products.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "kernels/split.h"

namespace gemwright {

constexpr std::string_view kSplitName = "Q8_0_SPLIT";

// Layout of a packed weight [out, in]; `in` is a multiple of 32.
struct Split {
  int64_t out, in;
  int64_t panels_size;  // bytes of the Q5_0 panels, which come first
  int64_t errors;       // offset of float32 [panels * 16]: the most that a row's r add, for an input of length 1
  int64_t fine;         // offset of the rows of r
  int64_t row_bytes;    // bytes per row of r: a float16 per 32 values, then 64 bytes for each of `fine_groups`
  int64_t size;         // bytes of the whole
};

// Returns nothing if a size is negative, too large or not a whole number of blocks.
std::optional<Split> split_layout(int64_t out, int64_t in);

// Returns the layout of a packed weight of `size` bytes with rows of `in` values.
std::optional<Split> split_of_size(int64_t size, int64_t in);

// Adds d r to y [in], which holds 8 d h: the sum is exactly d q.
void add_fine(const Split& split, const uint8_t* packed, int64_t row, float* y);

// Writes rows [first, first + rows) of a weight from their Q8_0 blocks; `first` is a multiple of 16. Returns false if a
// scale is too large to be multiplied by 8.
bool repack_split(const Split& split, const uint8_t* source, int64_t first, int64_t rows, uint8_t* packed, int threads);

}  // namespace gemwright
