// Sixteen lanes as four NEON registers, with the signed four-way byte dot product of Armv8.2.
#pragma once

#include <arm_neon.h>
#ifdef __linux__
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdint>
#include <cstring>

#include "simd/types.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {

constexpr int kTileRows = 4;
constexpr int kSignedOffset = 0;

inline bool supported() {
#ifdef __linux__
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return true;  // every Arm-based Mac has it
#endif
}

struct Floats {
  float32x4_t v[4];
};
struct Ints {
  int32x4_t v[4];
};
struct Bytes {
  uint8x16_t v[4];
};
using Signed = Bytes;

#define GEMWRIGHT_EACH(type, expression)             \
  type y;                                            \
  for (int i = 0; i < 4; ++i) y.v[i] = (expression); \
  return y

inline Floats broadcast(float x) { GEMWRIGHT_EACH(Floats, vdupq_n_f32(x)); }
inline Floats zero() { return broadcast(0.0f); }
inline Floats load(const float* p) { GEMWRIGHT_EACH(Floats, vld1q_f32(p + 4 * i)); }
inline Floats load(const Float16* p) {
  GEMWRIGHT_EACH(Floats, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p[4 * i].bits))));
}
inline Floats load(const Bfloat16* p) {
  GEMWRIGHT_EACH(Floats, vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p[4 * i].bits), 16)));
}
inline Floats load(const uint8_t* p) {
  const uint8x16_t x = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_u8(vget_high_u8(x));
  return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
          vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(high)))};
}
inline Floats load(const int8_t* p) {
  const int8x16_t x = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
          vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
}
inline void store(float* p, Floats x) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}
inline Floats to_float(Ints x) { GEMWRIGHT_EACH(Floats, vcvtq_f32_s32(x.v[i])); }
inline Floats operator*(Floats a, Floats b) { GEMWRIGHT_EACH(Floats, vmulq_f32(a.v[i], b.v[i])); }
inline Floats operator+(Floats a, Floats b) { GEMWRIGHT_EACH(Floats, vaddq_f32(a.v[i], b.v[i])); }
inline Floats operator-(Floats a, Floats b) { GEMWRIGHT_EACH(Floats, vsubq_f32(a.v[i], b.v[i])); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { GEMWRIGHT_EACH(Floats, vfmaq_f32(c.v[i], a.v[i], b.v[i])); }

inline float add_lanes(Floats x) { return vaddvq_f32(vaddq_f32(vaddq_f32(x.v[0], x.v[1]), vaddq_f32(x.v[2], x.v[3]))); }

// Returns b's lane if a's is NaN, like the other instruction sets.
inline Floats larger(Floats a, Floats b) {
  GEMWRIGHT_EACH(Floats, vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]));
}
// Returns one bit per lane.
inline uint32_t at_least(Floats a, Floats b) {
  const uint32x4_t bit = {1, 2, 4, 8};
  uint32_t mask = 0;
  for (int i = 0; i < 4; ++i) mask |= vaddvq_u32(vandq_u32(vcgeq_f32(a.v[i], b.v[i]), bit)) << 4 * i;
  return mask;
}

inline Ints broadcast(int32_t x) { GEMWRIGHT_EACH(Ints, vdupq_n_s32(x)); }

inline Bytes load_bytes(const uint8_t* p) { GEMWRIGHT_EACH(Bytes, vld1q_u8(p + 16 * i)); }
template <int Left>
inline Bytes shift_and(Bytes x, uint8_t mask) {
  GEMWRIGHT_EACH(Bytes, vandq_u8(vshlq_u8(x.v[i], vdupq_n_s8(Left)), vdupq_n_u8(mask)));
}
inline Bytes operator|(Bytes a, Bytes b) { GEMWRIGHT_EACH(Bytes, vorrq_u8(a.v[i], b.v[i])); }
inline Bytes look_up(const int8_t* table, Bytes x) {
  const uint8x16_t sixteen = vreinterpretq_u8_s8(vld1q_s8(table));
  GEMWRIGHT_EACH(Bytes, vqtbl1q_u8(sixteen, x.v[i]));
}
template <int J>
inline Ints unsigned_byte(Bytes x) {
  GEMWRIGHT_EACH(Ints, vreinterpretq_s32_u32(
                           vandq_u32(vshlq_u32(vreinterpretq_u32_u8(x.v[i]), vdupq_n_s32(-8 * J)), vdupq_n_u32(255))));
}
template <int J>
inline Ints signed_byte(Bytes x) {
  GEMWRIGHT_EACH(Ints, vshrq_n_s32(vshlq_s32(vreinterpretq_s32_u8(x.v[i]), vdupq_n_s32(24 - 8 * J)), 24));
}

inline int8x16_t broadcast_four(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
inline Ints dot_signed(Ints sum, Signed w, const int8_t* q) {
  const int8x16_t four = broadcast_four(q);
  GEMWRIGHT_EACH(Ints, vdotq_s32(sum.v[i], vreinterpretq_s8_u8(w.v[i]), four));
}
inline Ints dot(Ints sum, Bytes w, const int8_t* q) { return dot_signed(sum, w, q); }  // 0..63 fit int8
inline Ints dot_each(Ints sum, Bytes w, const int8_t* q) {
  GEMWRIGHT_EACH(Ints, vdotq_s32(sum.v[i], vreinterpretq_s8_u8(w.v[i]), vld1q_s8(q + 16 * i)));
}
inline Ints load(const int32_t* p) { GEMWRIGHT_EACH(Ints, vld1q_s32(p + 4 * i)); }
inline Floats repeat(const float* p) { GEMWRIGHT_EACH(Floats, vld1q_f32(p)); }
inline Signed prepare_signed(Bytes w) { return w; }
inline Ints dot_small(Ints sum, Bytes w, const int8_t* q) { return dot_signed(sum, prepare_signed(w), q); }

#undef GEMWRIGHT_EACH

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
