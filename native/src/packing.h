// From a GGUF tensor's bytes to panels: sizes and the one-time repacking.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "format.h"

namespace gemwright {

// The encoding of a GGUF name such as "Q4_K"; nothing for one that has no kernels.
std::optional<Encoding> find_encoding(std::string_view name);

// Bytes of a weight [out, in] as rows of source blocks, of one panel of it, and of all its panels. Nothing if
// `in` is not a whole number of blocks, a size is negative, or the result would not fit in 63 bits.
std::optional<int64_t> source_bytes(Encoding encoding, int64_t out, int64_t in);
std::optional<int64_t> panel_bytes(Encoding encoding, int64_t in);
std::optional<int64_t> packed_bytes(Encoding encoding, int64_t out, int64_t in);

// Writes 32 values 0..31 into row `row` of a stripe.
void place(const uint8_t* q, int row, Quants<5>& to);

// The scale of rows that a panel lacks: NaN, so that a look-up there is seen.
constexpr Float16 kNan16{0x7e00};

// Writes the panels of a weight whose sizes the functions above accept, on `threads` threads.
void pack(Encoding encoding, const uint8_t* source, int64_t out, int64_t in, uint8_t* panels, int threads);

}  // namespace gemwright
