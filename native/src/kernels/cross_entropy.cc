// Kernels of the cross-entropy, compiled once for each instruction set.
#include "kernels/cross_entropy.h"

#include <cstring>

#include "kernels/kernels.h"

#include GEMWRIGHT_SIMD_HEADER
#include "kernels/exponential.h"
#include "kernels/gemm.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {
namespace {

constexpr int kColumns = kGemmColumns;  // tokens of a panel

int64_t padded(int64_t rows) { return (rows + kGemmRows - 1) / kGemmRows * kGemmRows; }

void pack_tokens(const CrossEntropyArgs& args, const TokenBlock& block, int64_t panel) {
  float* packed = block.hidden + panel * args.width * kColumns;
  for (int64_t i = 0; i < kColumns; ++i) {
    const int64_t place = panel * kColumns + i;
    const float* x = place < block.count ? args.hidden + block.tokens[place] * args.width : nullptr;
    for (int64_t k = 0; k < args.width; ++k) packed[k * kColumns + i] = x == nullptr ? 0.0f : x[k];
  }
}

// Packs rows of the head [rows, width] for the logits, and if `twice` their columns for the gradient, some rows at a time
// so that the second copy finds them in the cache.
void pack_head(const float* head, int64_t rows, int64_t width, const CrossEntropyScratch& scratch, bool twice) {
  for (int64_t row = 0; row < rows; row += kGemmRows) {
    const float* from = head + row * width;
    const int64_t count = rows - row < kGemmRows ? rows - row : kGemmRows;
    pack(from, width, 1, count, width, scratch.rows + row * width, 0);
    if (twice) pack(from, 1, width, width, count, scratch.columns + row * kGemmRows, rows * kGemmRows);
  }
}

// Copies the logits of targets among rows [first, first + rows).
void find_targets(const CrossEntropyArgs& args, const TokenBlock& block, int64_t panel, int64_t first, int64_t rows,
                  const float* logits) {
  for (int64_t i = 0; i < kColumns && panel * kColumns + i < block.count; ++i) {
    const int64_t place = panel * kColumns + i, row = args.targets[block.tokens[place]] - first;
    if (row >= 0 && row < rows) block.target_logits[place] = logits[row * kColumns + i];
  }
}

constexpr int64_t kExponentials = 16;  // rows at a time: the compiler vectorizes a long loop, and unrolls a short one

// Turns logits [count, kColumns] into exp(logit - maximum), times the derivative of the soft cap, and adds the former to
// `totals`; count is at most kExponentials.
void exponentiate(float* logits, int64_t count, const float* maxima, float cap_inverse, float* totals) {
  float y[kExponentials * kColumns];
  for (int c = 0; c < kColumns; c += kLanes) {
    const Floats maximum = load(maxima + c);
    for (int64_t i = c; i < count * kColumns; i += kColumns) store(y + i, load(logits + i) - maximum);
  }
  for (int64_t i = 0; i < count * kColumns; ++i) y[i] = exponential(y[i]);
  for (int c = 0; c < kColumns; c += kLanes) {
    Floats total = load(totals + c);
    for (int64_t i = c; i < count * kColumns; i += kColumns) {
      const Floats t = load(logits + i) * broadcast(cap_inverse);
      total = total + load(y + i);
      store(logits + i, load(y + i) * (broadcast(1.0f) - t * t));
    }
    store(totals + c, total);
  }
}

// Exponentiates logits [rows, kColumns] and updates the maximum and total of each token. `scale` becomes the factor of
// what was summed before; returns whether one is not 1.
bool update_softmax(float* logits, int64_t rows, float cap, bool first, float* maxima, float* totals, float* scale) {
  float largest[kColumns];
  std::memcpy(largest, first ? logits : maxima, sizeof(largest));
  for (int64_t row = 0; row < rows; ++row) {
    for (int i = 0; i < kColumns; ++i) {
      const float x = logits[row * kColumns + i];
      largest[i] = x > largest[i] ? x : largest[i];
    }
  }
  bool changed = false;
  for (int i = 0; i < kColumns; ++i) {
    scale[i] = first ? 0.0f : exponential(maxima[i] - largest[i]);
    changed |= scale[i] != 1.0f;
    maxima[i] = largest[i];
    totals[i] = first ? 0.0f : totals[i] * scale[i];
  }
  const float cap_inverse = cap > 0 ? 1.0f / cap : 0.0f;
  for (int64_t row = 0; row < rows; row += kExponentials) {
    const int64_t count = rows - row < kExponentials ? rows - row : kExponentials;
    exponentiate(logits + row * kColumns, count, maxima, cap_inverse, totals);
  }
  return changed;
}

void sum(const CrossEntropyArgs& args, const TokenBlock& block, int64_t first, int64_t last, int64_t tile,
         const CrossEntropyScratch& scratch, const VocabularySums& sums) {
  const int64_t width = args.width, tall = padded(width), stride = padded(tile) * kColumns;
  for (int64_t row = first; row < last; row += tile) {
    const int64_t rows = last - row < tile ? last - row : tile;
    const float* head = args.head + row * width;
    pack_head(head, rows, width, scratch, sums.weighted != nullptr);
    for (int64_t panel = 0; panel < block.panels; ++panel) {
      float* logits = scratch.logits + panel * stride;
      multiply_panel(scratch.rows, padded(rows), block.hidden + panel * width * kColumns, width, false, logits);
      if (args.cap > 0) {
        for (int64_t i = 0; i < rows * kColumns; ++i) logits[i] = capped(logits[i], args.cap);
      }
      find_targets(args, block, panel, row, rows, logits);
      float scale[kColumns];
      const bool changed = update_softmax(logits, rows, args.cap, row == first, sums.maxima + panel * kColumns,
                                          sums.totals + panel * kColumns, scale);
      if (sums.weighted == nullptr || row == first || !changed) continue;
      float* weighted = sums.weighted + panel * tall * kColumns;
      for (int64_t k = 0; k < tall; ++k) {
        for (int i = 0; i < kColumns; ++i) weighted[k * kColumns + i] *= scale[i];
      }
    }
    if (sums.weighted == nullptr) continue;
    for (int64_t panel = 0; panel < block.panels; ++panel) {
      multiply_panel(scratch.columns, tall, scratch.logits + panel * stride, rows, row > first,
                     sums.weighted + panel * tall * kColumns);
    }
  }
}

// Writes the gradient of the token in column `i` of a panel; `scale` are the factors of the parts.
void write_gradient(const CrossEntropyArgs& args, int64_t token, int64_t i, int64_t panel, float target_logit,
                    const VocabularySums* parts, const float* scale, int64_t count) {
  const int64_t width = args.width, target = args.targets[token];
  const bool known = target >= 0 && target < args.vocabulary;
  const float t = args.cap > 0 ? target_logit / args.cap : 0.0f, slope = 1.0f - t * t;
  float* y = args.gradient + token * width;
  for (int64_t k = 0; k < width; ++k) {
    float total = 0.0f;
    for (int64_t part = 0; part < count; ++part) {
      total += scale[part] * parts[part].weighted[(panel * padded(width) + k) * kColumns + i];
    }
    y[k] = known ? total - slope * args.head[target * width + k] : total;
  }
}

void finish(const CrossEntropyArgs& args, const TokenBlock& block, int64_t panel, const VocabularySums* parts,
            int64_t count) {
  for (int64_t i = 0; i < kColumns && panel * kColumns + i < block.count; ++i) {
    const int64_t place = panel * kColumns + i, token = block.tokens[place];
    float maximum = parts[0].maxima[place], total = 0.0f, scale[kMaxVocabularyParts];
    for (int64_t part = 1; part < count; ++part) {
      const float other = parts[part].maxima[place];
      maximum = other > maximum ? other : maximum;
    }
    for (int64_t part = 0; part < count; ++part) {
      scale[part] = exponential(parts[part].maxima[place] - maximum);
      total += scale[part] * parts[part].totals[place];
    }
    args.losses[token] = maximum + __builtin_logf(total) - block.target_logits[place];
    for (int64_t part = 0; part < count; ++part) scale[part] /= total;
    if (args.gradient != nullptr) {
      write_gradient(args, token, i, panel, block.target_logits[place], parts, scale, count);
    }
  }
}

}  // namespace

extern const CrossEntropyKernels cross_entropy;
constexpr CrossEntropyKernels cross_entropy{kGemmRows, kColumns, pack_tokens, sum, finish};

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
