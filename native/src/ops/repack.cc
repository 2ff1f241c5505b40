#include "ops/repack.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

namespace gemwright {
namespace {

// ---- Reading source blocks: their small integers in order, as bytes, and their scales.

// Unpacks two values per byte: the `count` low nibbles, then the `count` high ones.
void unpack_nibbles(const uint8_t* packed, int count, uint8_t* q) {
  for (int i = 0; i < count; ++i) {
    q[i] = packed[i] & 15;
    q[count + i] = packed[i] >> 4;
  }
}

// Moves bit i of a byte to the lowest bit of byte i.
uint64_t spread(uint8_t bits) {
  const uint64_t each = bits * 0x0101010101010101u & 0x8040201008040201u;
  return (each + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
}

void unpack(const Q4_0::Source& s, uint8_t* q) { unpack_nibbles(s.qs, 16, q); }

void unpack(const Q5_0::Source& s, uint8_t* q) {
  unpack_nibbles(s.qs, 16, q);
  for (int i = 0; i < 4; ++i) {
    uint64_t eight;
    std::memcpy(&eight, q + 8 * i, 8);
    eight |= spread(s.qh[i]) << 4;
    std::memcpy(q + 8 * i, &eight, 8);
  }
}

void unpack(const Q8_0::Source& s, uint8_t* q) { std::memcpy(q, s.qs, 32); }

void unpack(const IQ4_NL::Source& s, uint8_t* q) { unpack_nibbles(s.qs, 16, q); }

void unpack(const IQ4_XS::Source& s, uint8_t* q) {
  for (int part = 0; part < 8; ++part) unpack_nibbles(s.qs + 16 * part, 16, q + 32 * part);
}

void unpack(const Q4_K::Source& s, uint8_t* q) {
  for (int pair = 0; pair < 4; ++pair) unpack_nibbles(s.qs + 32 * pair, 32, q + 64 * pair);
}

void unpack(const Q5_K::Source& s, uint8_t* q) {
  for (int pair = 0; pair < 4; ++pair) unpack_nibbles(s.qs + 32 * pair, 32, q + 64 * pair);
  for (int part = 0; part < 8; ++part) {
    for (int i = 0; i < 32; ++i) q[32 * part + i] |= (s.qh[i] >> part & 1) << 4;
  }
}

void unpack(const Q6_K::Source& s, uint8_t* q) {
  for (int half = 0; half < 2; ++half, q += 128) {
    unpack_nibbles(s.ql + 64 * half, 64, q);
    for (int part = 0; part < 4; ++part) {
      for (int i = 0; i < 32; ++i) q[32 * part + i] |= (s.qh[32 * half + i] >> (2 * part) & 3) << 4;
    }
  }
}

// Unpacks eight six-bit scales and minima from twelve bytes. The first four of each are the low six bits of bytes 0-3
// and 4-7. The last four scales (minima) are the low (high) nibbles of bytes 8-11, below the two high bits of bytes 0-3
// (4-7).
void unpack_scales(const uint8_t (&packed)[12], uint8_t (&scale)[8], uint8_t (&min)[8]) {
  for (int i = 0; i < 4; ++i) {
    scale[i] = packed[i] & 63;
    min[i] = packed[4 + i] & 63;
    scale[4 + i] = (packed[8 + i] & 15) | packed[i] >> 6 << 4;
    min[4 + i] = packed[8 + i] >> 4 | packed[4 + i] >> 6 << 4;
  }
}

// Unpacks eight six-bit scales, of which 32 is subtracted.
void unpack_scales(const IQ4_XS::Source& s, int8_t (&scale)[8]) {
  for (int i = 0; i < 8; ++i) {
    const int low = s.scales_low[i / 2] >> (4 * (i % 2)) & 15, high = s.scales_high >> (2 * i) & 3;
    scale[i] = static_cast<int8_t>((low | high << 4) - 32);
  }
}

// ---- Writing one row's 32 values into the zeroed quants of a stripe.

// Loads four values, one per byte.
uint32_t load_four(const uint8_t* q) {
  uint32_t four;
  std::memcpy(&four, q, 4);
  return four;
}
constexpr uint32_t kLow = 0x0f0f0f0f;

void place(const uint8_t* q, int row, Quants<4>& to) {
  for (int g = 0; g < 4; ++g) {
    const uint32_t both = (load_four(q + 4 * g) & kLow) | (load_four(q + 16 + 4 * g) & kLow) << 4;
    std::memcpy(&to.low[g][4 * row], &both, 4);
  }
}

void place_low(const uint8_t* q, int row, uint8_t (&low)[4][64]) { place(q, row, reinterpret_cast<Quants<4>&>(low)); }

}  // namespace

void place(const uint8_t* q, int row, Quants<5>& to) {
  place_low(q, row, to.low);
  uint64_t bits = 0;  // even groups in the lower half, odd ones in the upper
  for (int pair = 0; pair < 4; ++pair) {
    uint64_t eight;
    std::memcpy(&eight, q + 8 * pair, 8);
    bits |= (eight >> 4 & 0x0101010101010101u) << 2 * pair;
  }
  const uint32_t all = static_cast<uint32_t>(bits) | static_cast<uint32_t>(bits >> 32) << 1;
  std::memcpy(&to.high[4 * row], &all, 4);
}

namespace {

void place(const uint8_t* q, int row, Quants<6>& to) {
  place_low(q, row, to.low);
  for (int half = 0; half < 2; ++half) {
    for (int j = 0; j < 4; ++j) {
      uint8_t bits = 0;
      for (int i = 0; i < 4; ++i) bits |= (q[16 * half + 4 * i + j] >> 4) << (2 * i);
      to.high[half][4 * row + j] = bits;
    }
  }
}

void place(const uint8_t* q, int row, Quants<8>& to) {
  for (int g = 0; g < 8; ++g) std::memcpy(&to.bytes[g][4 * row], q + 4 * g, 4);
}

template <class Format>
void place_block(const typename Format::Source& source, int row, typename Format::Panel& to) {
  uint8_t q[Format::kElements];
  unpack(source, q);
  to.d[row] = source.d;
  for (int s = 0; s < Format::kElements / kStripe; ++s) place(q + kStripe * s, row, to.stripes[s].q);
  if constexpr (Format::kMinima) {
    uint8_t scale[8], min[8];
    unpack_scales(source.scales, scale, min);
    to.dmin[row] = source.dmin;
    for (int s = 0; s < 8; ++s) {
      to.stripes[s].scale[row] = scale[s];
      to.stripes[s].min[row] = min[s];
    }
  } else if constexpr (Format::kScaled < kStripe) {
    for (int i = 0; i < 16; ++i) to.stripes[i / 2].scale[i % 2][row] = source.scales[i];
  } else if constexpr (Format::kElements > kStripe) {
    int8_t scale[8];
    unpack_scales(source, scale);
    for (int s = 0; s < 8; ++s) to.stripes[s].scale[row] = scale[s];
  }
}

// ---- Rows missing from the last panel: NaN, so that a look-up there is noticed.

void set_nan(float& x) { x = __builtin_nanf(""); }
void set_nan(Float16& x) { x = kNan16; }
void set_nan(Bfloat16& x) { x = Bfloat16{0x7fc0}; }

template <class Format>
void repack_panels(const uint8_t* source, int64_t out, int64_t in, uint8_t* panels, int64_t first, int64_t last) {
  using Source = typename Format::Source;
  const int64_t blocks = in / Format::kElements;
  for (int64_t panel = first; panel < last; ++panel) {
    auto* to = reinterpret_cast<typename Format::Panel*>(panels) + panel * blocks;
    const int rows = static_cast<int>(std::min<int64_t>(kLanes, out - panel * kLanes));
    std::memset(static_cast<void*>(to), 0, blocks * sizeof(*to));
    for (int64_t block = 0; block < blocks; ++block) {
      for (int row = 0; row < kLanes; ++row) {
        Source from;  // a copy, because the source may be unaligned
        const int64_t index = (panel * kLanes + row) * blocks + block;
        if (row < rows) std::memcpy(&from, source + index * sizeof(from), sizeof(from));
        if constexpr (Format::kPlain) {
          if (row >= rows) set_nan(from);
          to[block].values[row] = from;
        } else if (row < rows) {
          place_block<Format>(from, row, to[block]);
        } else {
          to[block].d[row] = kNan16;
        }
      }
    }
  }
}

struct EncodingInfo {
  std::string_view name;
  int64_t elements, source_bytes, panel_bytes;  // per block
  void (*repack)(const uint8_t*, int64_t, int64_t, uint8_t*, int64_t, int64_t);
};

#define GEMWRIGHT_ENCODING_INFO(f) \
  EncodingInfo{#f, f::kElements, sizeof(f::Source), sizeof(f::Panel), repack_panels<f>},
const EncodingInfo kEncodingInfo[] = {GEMWRIGHT_FORMATS(GEMWRIGHT_ENCODING_INFO)};
#undef GEMWRIGHT_ENCODING_INFO

std::optional<int64_t> product(int64_t a, int64_t b) {
  int64_t c;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &c)) return std::nullopt;
  return c;
}

std::optional<int64_t> row_bytes(Encoding encoding, int64_t in, int64_t block_bytes) {
  if (in % kEncodingInfo[encoding].elements != 0) return std::nullopt;
  return product(in / kEncodingInfo[encoding].elements, block_bytes);
}

int64_t panel_count(int64_t out) { return out / kLanes + (out % kLanes != 0); }

}  // namespace

std::optional<Encoding> find_encoding(std::string_view name) {
  for (int i = 0; i < kEncodings; ++i) {
    if (kEncodingInfo[i].name == name) return static_cast<Encoding>(i);
  }
  return std::nullopt;
}

std::optional<int64_t> source_bytes(Encoding encoding, int64_t out, int64_t in) {
  const auto row = row_bytes(encoding, in, kEncodingInfo[encoding].source_bytes);
  return row ? product(out, *row) : std::nullopt;
}

std::optional<int64_t> panel_bytes(Encoding encoding, int64_t in) {
  return row_bytes(encoding, in, kEncodingInfo[encoding].panel_bytes);
}

std::optional<int64_t> packed_bytes(Encoding encoding, int64_t out, int64_t in) {
  const auto panel = panel_bytes(encoding, in);
  return panel && out >= 0 ? product(panel_count(out), *panel) : std::nullopt;
}

void repack(Encoding encoding, const uint8_t* source, int64_t out, int64_t in, uint8_t* panels, int threads) {
  const int64_t count = panel_count(out);
  const auto part = [&](int64_t i) {
    kEncodingInfo[encoding].repack(source, out, in, panels, count * i / threads, count * (i + 1) / threads);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(part, i);
  part(0);
  for (std::thread& thread : others) thread.join();
}

}  // namespace gemwright
