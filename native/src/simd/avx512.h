// Sixteen lanes as one AVX-512 register, with the four-way byte dot products of VNNI. Also compiled with AMX, for
// kernels/matmul_bfloat16.cc.
#pragma once

#include <immintrin.h>
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>
#include <cstring>

#include "simd/types.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {

constexpr int kTileRows = 8;
constexpr int kSignedOffset = 128;  // VNNI multiplies unsigned by signed bytes, so signed weights are shifted up

inline bool supported() {
#ifdef __AMX_BF16__
  if (!__builtin_cpu_supports("amx-bf16") || !__builtin_cpu_supports("avx512bf16")) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // Linux keeps tile registers for a process that asks
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return false;
#endif
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

struct Floats {
  __m512 v;
};
struct Ints {
  __m512i v;
};
struct Bytes {
  __m512i v;
};
using Signed = Bytes;

inline __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline Floats zero() { return {_mm512_setzero_ps()}; }
inline Floats broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Floats load(const Float16* p) { return {_mm512_cvtph_ps(load_256(p))}; }
inline Floats load(const Bfloat16* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_256(p)), 16))};
}
inline Floats load(const uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_128(p)))}; }
inline Floats load(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_128(p)))}; }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x.v); }
inline Floats to_float(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

inline float add_lanes(Floats x) { return _mm512_reduce_add_ps(x.v); }
inline Floats larger(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
// Returns one bit per lane.
inline uint32_t at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }

inline Ints broadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }

inline Bytes load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int Left>
inline Bytes shift_and(Bytes x, uint8_t mask) {
  const __m512i shifted = Left > 0   ? _mm512_slli_epi16(x.v, Left > 0 ? Left : 0)
                          : Left < 0 ? _mm512_srli_epi16(x.v, Left < 0 ? -Left : 0)
                                     : x.v;
  return {_mm512_and_si512(shifted, _mm512_set1_epi8(static_cast<char>(mask)))};
}
inline Bytes operator|(Bytes a, Bytes b) { return {_mm512_or_si512(a.v, b.v)}; }
inline Bytes look_up(const int8_t* table, Bytes x) {
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(load_128(table)), x.v)};
}
template <int J>
inline Ints unsigned_byte(Bytes x) {
  return {_mm512_and_si512(_mm512_srli_epi32(x.v, 8 * J), _mm512_set1_epi32(255))};
}
template <int J>
inline Ints signed_byte(Bytes x) {
  return {_mm512_srai_epi32(_mm512_slli_epi32(x.v, 24 - 8 * J), 24)};
}

inline __m512i broadcast_four(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, 4);
  return _mm512_set1_epi32(four);
}
inline Ints dot(Ints sum, Bytes w, const int8_t* q) { return {_mm512_dpbusd_epi32(sum.v, w.v, broadcast_four(q))}; }
// As `dot`, but with four activations per lane; weights are 0..15.
inline Ints dot_each(Ints sum, Bytes w, const int8_t* q) {
  return {_mm512_dpbusd_epi32(sum.v, w.v, _mm512_loadu_si512(q))};
}
inline Ints load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
// Loads four floats, four times.
inline Floats repeat(const float* p) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))}; }
inline Signed prepare_signed(Bytes w) { return {_mm512_xor_si512(w.v, _mm512_set1_epi8(-128))}; }
inline Ints dot_signed(Ints sum, Signed w, const int8_t* q) { return dot(sum, w, q); }
inline Ints dot_small(Ints sum, Bytes w, const int8_t* q) { return dot_signed(sum, prepare_signed(w), q); }

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
