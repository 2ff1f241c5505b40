// Sixteen lanes as two AVX2 registers. Also compiled with AVX-VNNI, whose dot product is one instruction.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/types.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {

constexpr int kTileRows = 4;  // sums of more rows would exceed sixteen registers

inline bool supported() {
#ifdef __AVXVNNI__
  if (!__builtin_cpu_supports("avxvnni")) return false;
#endif
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

struct Floats {
  __m256 v[2];
};
struct Ints {
  __m256i v[2];
};
struct Bytes {
  __m256i v[2];
};

inline __m128i load_64(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
inline __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Floats load(const Float16* p) { return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))}; }
inline __m256 widen(__m128i bfloats) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bfloats), 16));
}
inline Floats load(const Bfloat16* p) { return {widen(load_128(p)), widen(load_128(p + 8))}; }
inline Floats to_float(Ints x) { return {_mm256_cvtepi32_ps(x.v[0]), _mm256_cvtepi32_ps(x.v[1])}; }
inline Floats load(const uint8_t* p) {
  return to_float({_mm256_cvtepu8_epi32(load_64(p)), _mm256_cvtepu8_epi32(load_64(p + 8))});
}
inline Floats load(const int8_t* p) {
  return to_float({_mm256_cvtepi8_epi32(load_64(p)), _mm256_cvtepi8_epi32(load_64(p + 8))});
}
inline void store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.v[0]);
  _mm256_storeu_ps(p + 8, x.v[1]);
}
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}; }
inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1])}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])};
}

inline float add_lanes(Floats x) {
  const __m256 eight = _mm256_add_ps(x.v[0], x.v[1]);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

inline Floats larger(Floats a, Floats b) { return {_mm256_max_ps(a.v[0], b.v[0]), _mm256_max_ps(a.v[1], b.v[1])}; }
// Returns one bit per lane.
inline uint32_t at_least(Floats a, Floats b) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.v[0], b.v[0], _CMP_GE_OQ))) |
         uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.v[1], b.v[1], _CMP_GE_OQ))) << 8;
}

inline Ints broadcast(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

inline Bytes load_bytes(const uint8_t* p) { return {load_256(p), load_256(p + 32)}; }
template <int Left>
inline __m256i shift(__m256i x) {
  if constexpr (Left > 0) {
    return _mm256_slli_epi16(x, Left);
  } else if constexpr (Left < 0) {
    return _mm256_srli_epi16(x, -Left);
  } else {
    return x;
  }
}
template <int Left>
inline Bytes shift_and(Bytes x, uint8_t mask) {
  const __m256i keep = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(shift<Left>(x.v[0]), keep), _mm256_and_si256(shift<Left>(x.v[1]), keep)};
}
inline Bytes operator|(Bytes a, Bytes b) { return {_mm256_or_si256(a.v[0], b.v[0]), _mm256_or_si256(a.v[1], b.v[1])}; }
inline Bytes look_up(const int8_t* table, Bytes x) {
  const __m256i sixteen = _mm256_broadcastsi128_si256(load_128(table));
  return {_mm256_shuffle_epi8(sixteen, x.v[0]), _mm256_shuffle_epi8(sixteen, x.v[1])};
}
template <int J>
inline Ints unsigned_byte(Bytes x) {
  const __m256i keep = _mm256_set1_epi32(255);
  return {_mm256_and_si256(_mm256_srli_epi32(x.v[0], 8 * J), keep),
          _mm256_and_si256(_mm256_srli_epi32(x.v[1], 8 * J), keep)};
}
template <int J>
inline Ints signed_byte(Bytes x) {
  return {_mm256_srai_epi32(_mm256_slli_epi32(x.v[0], 24 - 8 * J), 24),
          _mm256_srai_epi32(_mm256_slli_epi32(x.v[1], 24 - 8 * J), 24)};
}

inline __m256i broadcast_four(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

inline Ints load(const int32_t* p) { return {load_256(p), load_256(p + 8)}; }
inline Floats repeat(const float* p) {
  const __m256 eight = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
  return {eight, eight};
}

#ifdef __AVXVNNI__

constexpr int kSignedOffset = 128;  // as in avx512.h
using Signed = Bytes;

inline Ints dot(Ints sum, Bytes w, const int8_t* q) {
  const __m256i four = broadcast_four(q);
  return {_mm256_dpbusd_avx_epi32(sum.v[0], w.v[0], four), _mm256_dpbusd_avx_epi32(sum.v[1], w.v[1], four)};
}
inline Ints dot_each(Ints sum, Bytes w, const int8_t* q) {
  return {_mm256_dpbusd_avx_epi32(sum.v[0], w.v[0], load_256(q)),
          _mm256_dpbusd_avx_epi32(sum.v[1], w.v[1], load_256(q + 32))};
}
inline Signed prepare_signed(Bytes w) {
  const __m256i top = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(w.v[0], top), _mm256_xor_si256(w.v[1], top)};
}
inline Ints dot_signed(Ints sum, Signed w, const int8_t* q) { return dot(sum, w, q); }
inline Ints dot_small(Ints sum, Bytes w, const int8_t* q) { return dot_signed(sum, prepare_signed(w), q); }

#else

constexpr int kSignedOffset = 0;

// Adds adjacent products in 16 bits. Unsigned weights up to 63, or magnitudes up to 128, do not overflow: the sum is at
// most 2 * 128 * 127.
inline __m256i dot(__m256i sum, __m256i w, __m256i q) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, q), _mm256_set1_epi16(1)));
}
inline Ints dot(Ints sum, Bytes w, const int8_t* q) {
  const __m256i four = broadcast_four(q);
  return {dot(sum.v[0], w.v[0], four), dot(sum.v[1], w.v[1], four)};
}
inline Ints dot_each(Ints sum, Bytes w, const int8_t* q) {
  return {dot(sum.v[0], w.v[0], load_256(q)), dot(sum.v[1], w.v[1], load_256(q + 32))};
}
// Sums of two adjacent products each, in 16 bits.
#define GEMWRIGHT_PAIR_SUMS
struct PairSums {
  __m256i v[2];
};
inline PairSums multiply_pairs(Bytes w, const int8_t* q) {
  const __m256i four = broadcast_four(q);
  return {_mm256_maddubs_epi16(w.v[0], four), _mm256_maddubs_epi16(w.v[1], four)};
}
inline PairSums operator+(PairSums a, PairSums b) {
  return {_mm256_add_epi16(a.v[0], b.v[0]), _mm256_add_epi16(a.v[1], b.v[1])};
}
inline Ints add_pairs(Ints sum, PairSums x) {
  const __m256i one = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(sum.v[0], _mm256_madd_epi16(x.v[0], one)),
          _mm256_add_epi32(sum.v[1], _mm256_madd_epi16(x.v[1], one))};
}
inline void store(uint8_t* p, Bytes x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), x.v[1]);
}
// |w| * (q with w's sign) is w * q with an unsigned left side.
struct Signed {
  __m256i w[2], magnitude[2];
};
inline Signed prepare_signed(Bytes w) { return {{w.v[0], w.v[1]}, {_mm256_abs_epi8(w.v[0]), _mm256_abs_epi8(w.v[1])}}; }
inline Ints dot_signed(Ints sum, Signed w, const int8_t* q) {
  const __m256i four = broadcast_four(q);
  return {dot(sum.v[0], w.magnitude[0], _mm256_sign_epi8(four, w.w[0])),
          dot(sum.v[1], w.magnitude[1], _mm256_sign_epi8(four, w.w[1]))};
}
// For one row of activations, |q| * (w with q's sign) takes fewer instructions.
inline Ints dot_small(Ints sum, Bytes w, const int8_t* q) {
  const __m256i four = broadcast_four(q), magnitude = _mm256_abs_epi8(four);
  return {dot(sum.v[0], magnitude, _mm256_sign_epi8(w.v[0], four)),
          dot(sum.v[1], magnitude, _mm256_sign_epi8(w.v[1], four))};
}

// Sixteen lanes of two 16-bit integers. Multiplying them takes half as many instructions as two 8-bit parts.
#define GEMWRIGHT_INT16
struct Pairs {
  __m256i v[2];
};
inline Pairs load_pairs(const int16_t* p) { return {load_256(p), load_256(p + 16)}; }
inline void store(int16_t* p, Pairs x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 16), x.v[1]);
}
// Bytes 0 and 2 of each lane, or bytes 1 and 3.
template <bool IsSigned, bool Odd>
inline __m256i widen_bytes(__m256i x) {
  if constexpr (IsSigned) return _mm256_srai_epi16(Odd ? x : _mm256_slli_epi16(x, 8), 8);
  return Odd ? _mm256_srli_epi16(x, 8) : _mm256_and_si256(x, _mm256_set1_epi16(255));
}
template <bool IsSigned, bool Odd>
inline Pairs widen_bytes(Bytes x) {
  return {widen_bytes<IsSigned, Odd>(x.v[0]), widen_bytes<IsSigned, Odd>(x.v[1])};
}
inline Ints dot(Ints sum, Pairs w, const int16_t* q) {
  int32_t two;
  std::memcpy(&two, q, 4);
  const __m256i both = _mm256_set1_epi32(two);
  return {_mm256_add_epi32(sum.v[0], _mm256_madd_epi16(w.v[0], both)),
          _mm256_add_epi32(sum.v[1], _mm256_madd_epi16(w.v[1], both))};
}

#endif

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
