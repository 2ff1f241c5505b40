// The cross-entropy of next tokens and its gradient, without the logits of a whole vocabulary.
#pragma once

#include <cstdint>

namespace gemwright {

// One call: N tokens, D values each, a vocabulary of V.
//
//   z = cap tanh(hidden head^T / cap), or hidden head^T if cap is 0
//   losses = log sum exp(z) - z[target], gradient = d losses / d hidden
//
// Tokens that are not learned have a loss and a gradient of zero; a target outside the vocabulary has a loss of NaN.
struct CrossEntropyArgs {
  int64_t tokens, width, vocabulary;
  const float* hidden;     // [N, D]
  const float* head;       // [V, D]
  const int32_t* targets;  // [N]
  const bool* learned;     // [N]
  float cap;
  float* losses;    // [N]
  float* gradient;  // [N, D], or null
};

// Some learned tokens, in panels of `CrossEntropyKernels::columns`; the last panel is padded with zeros.
struct TokenBlock {
  const int64_t* tokens;  // [count], their places among the N
  int64_t count, panels;
  float* hidden;         // [panels, D, columns]
  float* target_logits;  // [count], NaN until found
};

// Sums over a part of the vocabulary, relative to the largest logit of that part.
struct VocabularySums {
  float *maxima, *totals;  // [panels, columns]: largest logit, sum of exp(logit - maximum)
  float* weighted;         // [panels, padded_width, columns]: sum of exp(logit - maximum) times rows of the head
};

// Room for the head's rows of a tile, packed twice, and for their logits.
struct CrossEntropyScratch {
  float *rows, *columns;  // [padded tile, D] and [padded_width, tile]
  float* logits;          // [panels, padded tile, columns]
};

constexpr int64_t kMaxVocabularyParts = 256;

struct CrossEntropyKernels {
  int64_t rows, columns;  // of a tile of a product: `padded` means to a multiple of `rows`
  void (*pack)(const CrossEntropyArgs&, const TokenBlock&, int64_t panel);
  // Sums over rows [first, last) of the head, `tile` at a time.
  void (*sum)(const CrossEntropyArgs&, const TokenBlock&, int64_t first, int64_t last, int64_t tile,
              const CrossEntropyScratch&, const VocabularySums&);
  // Adds the sums of all parts and writes the losses and gradients of a panel.
  void (*finish)(const CrossEntropyArgs&, const TokenBlock&, int64_t panel, const VocabularySums* parts, int64_t count);
};

}  // namespace gemwright
