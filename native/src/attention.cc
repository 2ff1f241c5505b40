#include "attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "ops.h"

namespace gemwright {
namespace {

constexpr int64_t kPartWork = 1 << 16;  // products in a part of a loop, some tens of microseconds
// As many new tokens are taken one after the other, and so give to the last bit what they give in calls of their own:
// a verified token must be the token that would have been decoded.
constexpr int64_t kOneByOne = 8;

int64_t parts(int64_t work, int64_t most) {
  return std::clamp<int64_t>(work / kPartWork, 1, std::max<int64_t>(most, 1));
}

// Floats that a thread keeps for one purpose, so that no call maps and clears fresh memory.
template <int Purpose>
float* scratch(int64_t floats) {
  thread_local std::vector<float> buffer;
  if (int64_t(buffer.size()) < floats) buffer.resize(floats);
  return buffer.data();
}

// Stores the new tokens [first, last) of one row and head, the last `slots` of them if there are more.
void insert(const AttentionArgs& a, int64_t row, int64_t head, int64_t first, int64_t last) {
  const int32_t* positions = a.positions + row * a.tokens;
  const int64_t newest = *std::max_element(positions + first, positions + last);
  float* keys = a.ring_keys + (row * a.kv_heads + head) * a.slots * a.width;
  float* values = a.ring_values + (row * a.kv_heads + head) * a.slots * a.width;
  const size_t bytes = a.width * sizeof(float);
  for (int64_t t = first; t < last; ++t) {
    if (positions[t] < 0 || positions[t] <= newest - a.slots) continue;
    const int64_t slot = positions[t] % a.slots;
    std::memcpy(keys + slot * a.width, a.new_keys + ((row * a.kv_heads + head) * a.tokens + t) * a.width, bytes);
    std::memcpy(values + slot * a.width, a.v + ((row * a.tokens + t) * a.kv_heads + head) * a.width, bytes);
  }
}

// ---- One of few new tokens in each row.

// The slots that a query at `position` sees, once its own key is there.
void stretches(const AttentionArgs& a, int64_t row, int64_t head, int64_t position, Stretch (&found)[2]) {
  const float* keys = a.ring_keys + (row * a.kv_heads + head) * a.slots * a.width;
  const float* values = a.ring_values + (row * a.kv_heads + head) * a.slots * a.width;
  const int64_t count = std::min({position + 1, a.slots, a.window}), slot = (position + 1 - count) % a.slots;
  const int64_t front = std::min(count, a.slots - slot);
  found[0] = {keys + slot * a.width, values + slot * a.width, front};
  found[1] = {keys, values, count - front};
}

void decode(Pool& pool, const AttentionArgs& a, int64_t token) {
  const AttentionKernels& kernel = kernels().attention;
  const int64_t group = a.group(), all = a.batch * a.kv_heads;
  const int64_t total = std::min<int64_t>(a.slots, a.window);
  const int64_t lanes = a.width / kLanes, work = group * total * a.width;
  float* weights = scratch<0>(all * group * total);
  // Each loop shares out rows and heads, and, where there are few, parts of each.
  const int64_t shares = parts(work, std::max<int64_t>(pool.threads() / all, 1));
  parallel_for(pool, all, [&](int64_t i) { insert(a, i / a.kv_heads, i % a.kv_heads, token, token + 1); });
  parallel_for(pool, all * shares, [&](int64_t i) {
    const int64_t pair = i / shares, share = i % shares;
    const int64_t position = a.positions[pair / a.kv_heads * a.tokens + token];
    const float* queries = a.queries + (pair * a.tokens + token) * group * a.width;
    if (position < 0) return;
    Stretch found[2];
    stretches(a, pair / a.kv_heads, pair % a.kv_heads, position, found);
    float* scores = weights + pair * group * total;
    for (const Stretch& stretch : found) {
      const int64_t first = stretch.count * share / shares, last = stretch.count * (share + 1) / shares;
      kernel.score(queries, group, a.width, stretch.keys + first * a.width, last - first, scores + first, total);
      scores += stretch.count;
    }
  });
  parallel_for(pool, all * shares, [&](int64_t i) {
    const int64_t pair = i / shares, share = i % shares, row = pair / a.kv_heads, head = pair % a.kv_heads;
    const int64_t position = a.positions[row * a.tokens + token];
    float* y = a.y + ((row * a.tokens + token) * a.heads + head * group) * a.width;
    const int64_t first = lanes * share / shares * kLanes, last = lanes * (share + 1) / shares * kLanes;
    if (position < 0) {
      for (int64_t g = 0; g < group; ++g) std::memset(y + g * a.width + first, 0, (last - first) * sizeof(float));
      return;
    }
    Stretch found[2];
    stretches(a, row, head, position, found);
    const int64_t count = found[0].count + found[1].count;
    const float* scores = weights + pair * group * total;
    float* own = scratch<1>(group * total);  // every share turns the same few scores into weights
    for (int64_t g = 0; g < group; ++g) {
      std::memcpy(own + g * total, scores + g * total, count * sizeof(float));
      kernel.weigh(own + g * total, count, a.cap);
    }
    kernel.mix(own, group, total, found, a.width, first, last, y);
  });
}

// ---- A chunk of new tokens.

void chunk(Pool& pool, const AttentionArgs& a) {
  const AttentionKernels& kernel = kernels().attention;
  const int64_t group = a.group(), all = a.batch * a.kv_heads, rows = a.tokens * group;
  std::vector<Past> pasts(all);
  int64_t longest = 0;
  for (int64_t pair = 0; pair < all; ++pair) {
    const int64_t row = pair / a.kv_heads, length = a.lengths[row];
    const int32_t* positions = a.positions + row * a.tokens;
    const int64_t begin = std::max<int64_t>({0, length - a.slots, length - a.window + 1});
    const int64_t fresh = std::count_if(positions, positions + a.tokens, [](int32_t p) { return p >= 0; });
    pasts[pair] = {begin, length - begin + fresh, nullptr, nullptr};
    longest = std::max(longest, pasts[pair].count);
  }
  const int64_t panels = (longest + kLanes - 1) / kLanes, room = panels * kLanes * a.width;
  float* keys = scratch<0>(2 * all * room);
  float* values = keys + all * room;

  parallel_for(pool, all * panels, [&](int64_t i) {
    const int64_t pair = i / panels, row = pair / a.kv_heads, head = pair % a.kv_heads, first = i % panels * kLanes;
    const Past& past = pasts[pair];
    const int64_t count = std::min<int64_t>(kLanes, past.count - first), length = a.lengths[row];
    if (count <= 0) return;
    const float* from[kLanes];
    for (int64_t j = 0; j < count; ++j) {
      const int64_t position = past.begin + first + j;
      const float* value;
      if (position < length) {
        const int64_t slot = (row * a.kv_heads + head) * a.slots + position % a.slots;
        from[j] = a.ring_keys + slot * a.width;
        value = a.ring_values + slot * a.width;
      } else {
        const int32_t* positions = a.positions + row * a.tokens;  // one after the other, but for padding
        int64_t token = position - length;
        while (positions[token] != position) ++token;
        from[j] = a.new_keys + ((row * a.kv_heads + head) * a.tokens + token) * a.width;
        value = a.v + ((row * a.tokens + token) * a.kv_heads + head) * a.width;
      }
      std::memcpy(values + pair * room + (first + j) * a.width, value, a.width * sizeof(float));
    }
    kernel.panel(from, count, a.width, keys + pair * room + first * a.width);
  });

  const int64_t tiles = (rows + kAttentionRows - 1) / kAttentionRows;
  parallel_for(pool, all * tiles, [&](int64_t i) {
    const int64_t pair = i / tiles, first = i % tiles * kAttentionRows;
    Past past = pasts[pair];
    past.panels = keys + pair * room;
    past.values = values + pair * room;
    kernel.attend(a, past, pair / a.kv_heads, pair % a.kv_heads, first, std::min(first + kAttentionRows, rows),
                  scratch<1>(kAttentionRows * (past.count + kLanes)));
  });
  parallel_for(pool, all, [&](int64_t i) { insert(a, i / a.kv_heads, i % a.kv_heads, 0, a.tokens); });
}

}  // namespace

std::string attention(Pool& pool, AttentionArgs a) {
  if (a.width % kLanes != 0 || a.kv_heads < 1 || a.heads % a.kv_heads != 0 || a.slots < 1 || a.window < 1 ||
      a.rotated < 0 || a.rotated > a.width || a.rotated % 2 != 0) {
    return "attention was given heads, a ring or a window of sizes that do not fit together.";
  }
  for (int64_t row = 0; row < a.batch; ++row) {  // what is stored where depends on these, so they are checked
    int64_t expected = a.lengths[row];
    if (expected < 0) return "attention was given a negative length.";
    for (int64_t t = 0; t < a.tokens; ++t) {
      const int32_t position = a.positions[row * a.tokens + t];
      if (position >= 0 && position != expected++) return "attention was given positions that do not follow on.";
    }
  }
  if (a.batch == 0 || a.tokens == 0) return {};
  a.queries = scratch<2>((a.heads + a.kv_heads) * a.batch * a.tokens * a.width);
  a.new_keys = a.queries + a.heads * a.batch * a.tokens * a.width;
  const int64_t count = a.batch * a.tokens;
  const int64_t shares = parts(count * (a.heads + a.kv_heads) * a.width * 8, std::min(count, 4 * pool.threads()));
  parallel_for(pool, shares, [&](int64_t i) {
    for (int64_t at = count * i / shares; at < count * (i + 1) / shares; ++at) {
      kernels().attention.prepare(a, at / a.tokens, at % a.tokens);
    }
  });
  if (a.tokens > kOneByOne) {
    chunk(pool, a);
  } else {
    for (int64_t token = 0; token < a.tokens; ++token) decode(pool, a, token);
  }
  return {};
}

}  // namespace gemwright
