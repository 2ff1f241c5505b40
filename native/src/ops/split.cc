#include "ops/split.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "kernels/format.h"
#include "kernels/kernels.h"
#include "ops/repack.h"

namespace gemwright {
namespace {

float widen(Float16 half) {
  const uint32_t sign = uint32_t(half.bits & 0x8000) << 16, magnitude = half.bits & 0x7fff;
  if (magnitude >= 0x7c00) return std::numeric_limits<float>::quiet_NaN();
  if (magnitude < 0x400) return (sign ? -1.0f : 1.0f) * float(magnitude) * 0x1p-24f;
  const uint32_t bits = sign | ((magnitude << 13) + 0x38000000);
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Computes 8 d, which is exact in float16 unless it is too large; d may be subnormal.
bool times_eight(Float16 d, Float16& result) {
  const uint16_t sign = d.bits & 0x8000, magnitude = d.bits & 0x7fff;
  if (magnitude >= 0x400) {
    if (magnitude >= 0x7000) return false;
    result = {uint16_t(sign | (magnitude + 0x0c00))};
    return true;
  }
  uint32_t mantissa = magnitude * 8, exponent = 0;  // of a subnormal number; 0x400 and more is normal
  if (mantissa >= 0x400) {
    for (exponent = 1; mantissa >= 0x800; mantissa /= 2) ++exponent;  // shifts out zeros only
    mantissa -= 0x400;
  }
  result = {uint16_t(sign | exponent << 10 | mantissa)};
  return true;
}

// Splits one row: h into row `lane` of a panel's blocks, r into `fine`. Returns a bound on what the r add for an input
// of length 1, or nothing if a scale is too large.
std::optional<float> split_row(const Split& split, const uint8_t* source, int lane, Q5_0::Panel* panel, uint8_t* fine) {
  const auto split_block = kernels().split.split_block;
  std::memset(fine, 0, split.row_bytes);
  auto* scales = reinterpret_cast<Float16*>(fine);
  uint8_t* const nibbles = fine + fine_scale_bytes(split.in);
  double error = 0.0, length = 0.0;
  for (int64_t b = 0; b < split.in / 32; ++b, source += sizeof(Q8_0::Source)) {
    std::memcpy(&scales[b], source, sizeof(Float16));
    uint8_t h[32];
    const Squares squares = split_block(source + sizeof(Float16), h, b, nibbles);
    if (!times_eight(scales[b], panel[b].d[lane])) return std::nullopt;
    place(h, lane, panel[b].stripes[0].q);
    const double d = widen(scales[b]);
    error += d * d * squares.r;
    length += d * d * squares.q;
  }
  // Computing the two products rounds too; their terms together are at most three times as long as the row.
  const double rounding = (double(split.in) / 32 + 16) * 0x1p-22;
  const double bound = std::sqrt(error) * 1.0001 + std::sqrt(length) * rounding;
  return std::nextafter(float(bound), std::numeric_limits<float>::infinity());
}

// Repacks panels [first, last).
bool repack_panels(const Split& split, const uint8_t* source, int64_t first, int64_t last, int64_t end,
                   uint8_t* packed) {
  const int64_t blocks = split.in / 32, row_bytes = blocks * sizeof(Q8_0::Source);
  auto* errors = reinterpret_cast<float*>(packed + split.errors);
  for (int64_t i = first; i < last; ++i) {
    auto* panel = reinterpret_cast<Q5_0::Panel*>(packed) + i * blocks;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t row = i * kLanes + lane;
      if (row < end) {
        uint8_t* fine = packed + split.fine + row * split.row_bytes;
        const auto bound = split_row(split, source + (row - first * kLanes) * row_bytes, lane, panel, fine);
        if (!bound) return false;
        errors[row] = *bound;
      } else {  // missing from the last panel
        errors[row] = 0.0f;
        uint8_t h[32] = {};
        for (int64_t b = 0; b < blocks; ++b) place(h, lane, panel[b].stripes[0].q), panel[b].d[lane] = kNan16;
      }
    }
  }
  return true;
}

}  // namespace

std::optional<Split> split_layout(int64_t out, int64_t in) {
  const auto panels = packed_bytes(kQ5_0, out, in);
  const int64_t limit = std::numeric_limits<int64_t>::max() / 16;
  if (!panels || in / 32 > kMaxScales || out > limit / (in + 64) || *panels > limit) return std::nullopt;
  Split split{out, in, *panels, *panels, 0, fine_scale_bytes(in) + fine_groups(in) * 64, 0};
  split.fine = (split.errors + (out + kLanes - 1) / kLanes * kLanes * int64_t{sizeof(float)} + 63) / 64 * 64;
  split.size = split.fine + out * split.row_bytes;
  return split;
}

std::optional<Split> split_of_size(int64_t size, int64_t in) {
  int64_t low = 0, high = size;  // rows
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    const auto split = split_layout(middle, in);
    if (split && split->size < size) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const auto split = split_layout(low, in);
  return split && split->size == size ? split : std::nullopt;
}

void add_fine(const Split& split, const uint8_t* packed, int64_t row, float* y) {
  const uint8_t* fine = packed + split.fine + row * split.row_bytes;
  const auto* scales = reinterpret_cast<const Float16*>(fine);
  for (int64_t b = 0; b < split.in / 32; ++b) {
    const float d = widen(scales[b]);
    const uint8_t* nibbles = fine + fine_scale_bytes(split.in);
    for (int i = 0; i < 32; ++i) y[32 * b + i] += d * float((nibbles[fine_byte(b, i)] >> (i / 4 % 2 * 4) & 15) - 4);
  }
}

bool repack_split(const Split& split, const uint8_t* source, int64_t first, int64_t rows, uint8_t* packed,
                  int threads) {
  const int64_t panels = (rows + kLanes - 1) / kLanes, row_bytes = split.in / 32 * sizeof(Q8_0::Source);
  std::atomic<bool> fits{true};
  const auto part = [&](int64_t i) {
    const int64_t begin = panels * i / threads, end = panels * (i + 1) / threads, before = first / kLanes;
    if (!repack_panels(split, source + begin * kLanes * row_bytes, before + begin, before + end, first + rows,
                       packed)) {
      fits = false;
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(part, i);
  part(0);
  for (std::thread& thread : others) thread.join();
  return fits;
}

}  // namespace gemwright
