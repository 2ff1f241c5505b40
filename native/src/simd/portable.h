// Sixteen lanes in plain C++, for every machine: the reference for the other instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/types.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {

constexpr int kTileRows = 2;      // of matrices; products take four
constexpr int kSignedOffset = 0;  // added to a weight by `prepare_signed`

inline bool supported() { return true; }

struct Floats {
  float v[kLanes];
};
struct Ints {
  int32_t v[kLanes];
};
struct Bytes {
  uint8_t v[64];
};
using Signed = Bytes;

#define GEMWRIGHT_EACH(type, expression)                  \
  type y;                                                 \
  for (int i = 0; i < kLanes; ++i) y.v[i] = (expression); \
  return y

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
  uint32_t bits;
  if (magnitude >= 0x7c00) {
    bits = 0x7f800000 | (magnitude & 0x3ff) << 13;
  } else if (magnitude >= 0x400) {
    bits = (magnitude << 13) + (112u << 23);
  } else {  // subnormal: an integer multiple of 2^-24
    const float value = float(magnitude) * 0x1p-24f;
    std::memcpy(&bits, &value, 4);
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline Floats zero() { return Floats{}; }
inline Floats broadcast(float x) { GEMWRIGHT_EACH(Floats, x); }
inline Floats load(const float* p) { GEMWRIGHT_EACH(Floats, p[i]); }
inline Floats load(const Float16* p) { GEMWRIGHT_EACH(Floats, half_to_float(p[i].bits)); }
inline Floats load(const Bfloat16* p) {
  uint32_t bits[kLanes];
  for (int i = 0; i < kLanes; ++i) bits[i] = uint32_t(p[i].bits) << 16;
  Floats y;
  std::memcpy(y.v, bits, sizeof(bits));
  return y;
}
inline Floats load(const uint8_t* p) { GEMWRIGHT_EACH(Floats, float(p[i])); }
inline Floats load(const int8_t* p) { GEMWRIGHT_EACH(Floats, float(p[i])); }
inline void store(float* p, Floats x) { std::memcpy(p, x.v, sizeof(x.v)); }
inline Floats to_float(Ints x) { GEMWRIGHT_EACH(Floats, float(x.v[i])); }
inline Floats operator*(Floats a, Floats b) { GEMWRIGHT_EACH(Floats, a.v[i] * b.v[i]); }
inline Floats operator+(Floats a, Floats b) { GEMWRIGHT_EACH(Floats, a.v[i] + b.v[i]); }
inline Floats operator-(Floats a, Floats b) { GEMWRIGHT_EACH(Floats, a.v[i] - b.v[i]); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { GEMWRIGHT_EACH(Floats, a.v[i] * b.v[i] + c.v[i]); }

inline Floats larger(Floats a, Floats b) { GEMWRIGHT_EACH(Floats, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
// Returns one bit per lane.
inline uint32_t at_least(Floats a, Floats b) {
  uint32_t mask = 0;
  for (int i = 0; i < kLanes; ++i) mask |= uint32_t(a.v[i] >= b.v[i]) << i;
  return mask;
}

inline float add_lanes(Floats x) {
  float sum = 0.0f;
  for (float lane : x.v) sum += lane;
  return sum;
}

inline Ints broadcast(int32_t x) { GEMWRIGHT_EACH(Ints, x); }

inline Bytes load_bytes(const uint8_t* p) {
  Bytes y;
  std::memcpy(y.v, p, 64);
  return y;
}
// Shifts bits within bytes left by `Left` (right if negative), then keeps those in `mask`, which excludes bits shifted
// in from an adjacent byte.
template <int Left>
inline Bytes shift_and(Bytes x, uint8_t mask) {
  Bytes y;
  for (int i = 0; i < 64; ++i) y.v[i] = uint8_t(Left >= 0 ? x.v[i] << (Left & 7) : x.v[i] >> (-Left & 7)) & mask;
  return y;
}
inline Bytes operator|(Bytes a, Bytes b) {
  Bytes y;
  for (int i = 0; i < 64; ++i) y.v[i] = a.v[i] | b.v[i];
  return y;
}
// Replaces each byte, 0..15, by an entry of the table.
inline Bytes look_up(const int8_t* table, Bytes x) {
  for (uint8_t& byte : x.v) byte = uint8_t(table[byte & 15]);
  return x;
}
// Returns byte J of each lane as a number.
template <int J>
inline Ints unsigned_byte(Bytes x) {
  GEMWRIGHT_EACH(Ints, x.v[4 * i + J]);
}
template <int J>
inline Ints signed_byte(Bytes x) {
  GEMWRIGHT_EACH(Ints, int8_t(x.v[4 * i + J]));
}

// Adds the dot product of each lane's four weights and the same four activations; weights are 0..63.
inline Ints dot(Ints sum, Bytes w, const int8_t* q) {
  GEMWRIGHT_EACH(Ints,
                 sum.v[i] + w.v[4 * i] * q[0] + w.v[4 * i + 1] * q[1] + w.v[4 * i + 2] * q[2] + w.v[4 * i + 3] * q[3]);
}
// As `dot`, but with four activations per lane; weights are 0..15.
inline Ints dot_each(Ints sum, Bytes w, const int8_t* q) {
  GEMWRIGHT_EACH(Ints, sum.v[i] + w.v[4 * i] * q[4 * i] + w.v[4 * i + 1] * q[4 * i + 1] +
                           w.v[4 * i + 2] * q[4 * i + 2] + w.v[4 * i + 3] * q[4 * i + 3]);
}
inline Ints load(const int32_t* p) { GEMWRIGHT_EACH(Ints, p[i]); }
// Loads four floats, four times.
inline Floats repeat(const float* p) { GEMWRIGHT_EACH(Floats, p[i % 4]); }
inline Signed prepare_signed(Bytes w) { return w; }
// As `dot`, with weights -128..127.
inline Ints dot_signed(Ints sum, Signed w, const int8_t* q) {
  const int8_t* s = reinterpret_cast<const int8_t*>(w.v);
  GEMWRIGHT_EACH(Ints, sum.v[i] + s[4 * i] * q[0] + s[4 * i + 1] * q[1] + s[4 * i + 2] * q[2] + s[4 * i + 3] * q[3]);
}
// As `dot_signed`, with weights -127..127 and for one row of activations.
inline Ints dot_small(Ints sum, Bytes w, const int8_t* q) { return dot_signed(sum, prepare_signed(w), q); }

#undef GEMWRIGHT_EACH

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
