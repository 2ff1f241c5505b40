// Peak rates of the machine: memory reads and 8-bit integer products. Compiled by machine.py.
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

typedef uint64_t Vector __attribute__((vector_size(64)));

// Reads a buffer with wide loads, prefetching `prefetch` bytes ahead.
extern "C" uint64_t read_bytes(const unsigned char* p, size_t size, size_t prefetch) {
  Vector sum[4] = {};
  for (size_t i = 0; i + 256 <= size; i += 256) {
    for (int j = 0; j < 4; ++j) {
      if (prefetch != 0) __builtin_prefetch(p + i + 64 * j + prefetch);
      Vector x;
      std::memcpy(&x, p + i + 64 * j, 64);
      sum[j] ^= x;
    }
  }
  const Vector all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  uint64_t result = 0;
  for (int i = 0; i < 8; ++i) result ^= all[i];
  return result;
}

// Prevents the compiler from folding a loop with constant operands.
#if defined(__x86_64__)
#define KEEP(x) asm volatile("" : "+x"(x))
#else
#define KEEP(x) asm volatile("" : "+w"(x))
#endif

// Adds the products of each lane's four bytes to its 32-bit sum.
#if defined(__AVX512VNNI__)
typedef __m512i Sums;
static inline Sums dot(Sums s, Sums a, Sums b) { return _mm512_dpbusd_epi32(s, a, b); }
#elif defined(__AVXVNNI__)
typedef __m256i Sums;
static inline Sums dot(Sums s, Sums a, Sums b) { return _mm256_dpbusd_avx_epi32(s, a, b); }
#elif defined(__AVX2__)
typedef __m256i Sums;
static inline Sums dot(Sums s, Sums a, Sums b) {
  const __m256i pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
  return _mm256_add_epi32(s, pairs);
}
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int32x4_t Sums;
static inline Sums dot(Sums s, Sums a, Sums b) {
  return vdotq_s32(s, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
}
#else
typedef int32_t Sums __attribute__((vector_size(16)));
static inline Sums dot(Sums s, Sums a, Sums b) { return s + a * b; }
#endif

// Computes `rounds` times twelve independent sums in registers; returns the number of multiplications and additions.
extern "C" double dot_products(size_t rounds) {
  constexpr int kSums = 12;
  Sums sum[kSums] = {}, a = {}, b = {};
  for (size_t i = 0; i < rounds; ++i) {
    for (int j = 0; j < kSums; ++j) {
      sum[j] = dot(sum[j], a, b);
      KEEP(sum[j]);
    }
  }
  return 2.0 * sizeof(Sums) * kSums * static_cast<double>(rounds);
}
