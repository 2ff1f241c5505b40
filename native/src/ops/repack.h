// Repacking: from a GGUF tensor's bytes to panels, once per weight.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "kernels/format.h"

namespace gemwright {

// Returns the encoding with a GGUF name such as "Q4_K", or nothing if it has no kernels.
std::optional<Encoding> find_encoding(std::string_view name);

// Return the bytes of a weight [out, in] as rows of source blocks, of one panel, and of all its panels. Nothing if
// `in` is not a whole number of blocks, a size is negative, or the result needs more than 63 bits.
std::optional<int64_t> source_bytes(Encoding encoding, int64_t out, int64_t in);
std::optional<int64_t> panel_bytes(Encoding encoding, int64_t in);
std::optional<int64_t> packed_bytes(Encoding encoding, int64_t out, int64_t in);

// Writes 32 values in 0..31 into row `row` of a stripe.
void place(const uint8_t* q, int row, Quants<5>& to);

// The scale of rows missing from the last panel: NaN, so that a look-up there is noticed.
constexpr Float16 kNan16{0x7e00};

// Writes the panels of a weight whose sizes the functions above accept, on `threads` threads.
void repack(Encoding encoding, const uint8_t* source, int64_t out, int64_t in, uint8_t* panels, int threads);

}  // namespace gemwright
