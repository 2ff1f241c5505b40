#include "kernels/cross_entropy.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "ops/ops.h"

namespace gemwright {
namespace {

constexpr int64_t kTileValues = 96 << 10;   // of the head in a tile: it stays in the second-level cache
constexpr int64_t kBlockValues = 16 << 20;  // of all sums: they bound the tokens of a block
constexpr int64_t kBlockTokens = 1024;
constexpr int64_t kPartRows = 1024;  // of the head, at least, in each part of the vocabulary

using Floats = std::unique_ptr<float[]>;

Floats allocate(int64_t count) { return Floats(new float[std::max<int64_t>(count, 1)]); }

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// The sums of one part of the vocabulary, in one allocation.
struct Sums {
  Sums(int64_t tokens, int64_t width) : values(allocate(tokens * (width + 2))) {
    view = {values.get(), values.get() + tokens, width > 0 ? values.get() + 2 * tokens : nullptr};
  }
  Floats values;
  VocabularySums view;
};

void run_block(Pool& pool, const CrossEntropyArgs& args, const int64_t* tokens, int64_t count, int64_t parts) {
  const CrossEntropyKernels& kernel = kernels().cross_entropy;
  const int64_t panels = (count + kernel.columns - 1) / kernel.columns, padded = panels * kernel.columns;
  const int64_t tall = round_up(args.width, kernel.rows);
  const int64_t tile = round_up(std::clamp<int64_t>(kTileValues / args.width, 48, 256), kernel.rows);
  const Floats hidden = allocate(padded * args.width);
  std::vector<float> targets(count, std::numeric_limits<float>::quiet_NaN());
  const TokenBlock block{tokens, count, panels, hidden.get(), targets.data()};
  parallel_for(pool, panels, [&](int64_t panel) { kernel.pack(args, block, panel); });

  std::vector<Sums> sums;
  std::vector<VocabularySums> views;
  for (int64_t part = 0; part < parts; ++part) {
    sums.emplace_back(padded, args.gradient == nullptr ? 0 : tall);
    views.push_back(sums.back().view);
  }
  parallel_for(pool, parts, [&](int64_t part) {
    const int64_t first = args.vocabulary * part / parts, last = args.vocabulary * (part + 1) / parts;
    const Floats rows = allocate(tile * args.width), columns = allocate(tall * tile), logits = allocate(tile * padded);
    kernel.sum(args, block, first, last, tile, {rows.get(), columns.get(), logits.get()}, views[part]);
  });
  parallel_for(pool, panels, [&](int64_t panel) { kernel.finish(args, block, panel, views.data(), parts); });
}

}  // namespace

std::string cross_entropy(Pool& pool, const CrossEntropyArgs& args) {
  if (args.width < 1 || args.vocabulary < 1) return "cross_entropy needs a head with at least one row and one column.";
  std::vector<int64_t> learned;
  for (int64_t i = 0; i < args.tokens; ++i) {
    if (args.learned[i]) learned.push_back(i);
  }
  std::fill_n(args.losses, args.tokens, 0.0f);
  if (args.gradient != nullptr) std::fill_n(args.gradient, args.tokens * args.width, 0.0f);
  // Several parts for each thread, so that one that is late delays little.
  const int64_t parts =
      std::clamp<int64_t>(args.vocabulary / kPartRows, 1, std::min(4 * pool.threads(), kMaxVocabularyParts));
  const int64_t most = std::clamp<int64_t>(kBlockValues / (parts * args.width), 32, kBlockTokens);
  const int64_t count = static_cast<int64_t>(learned.size());
  for (int64_t first = 0; first < count; first += most) {
    run_block(pool, args, learned.data() + first, std::min(most, count - first), parts);
  }
  return {};
}

}  // namespace gemwright
