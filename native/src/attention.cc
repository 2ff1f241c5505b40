#include "attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "ops.h"

namespace gemwright {
namespace {

constexpr int64_t kPartWork = 1 << 14;   // products in a part of a loop, some microseconds
constexpr int64_t kDirectRows = 64;      // so few queries meet the keys as they lie
constexpr int64_t kExponential = 16;     // products that take as long as one
// As many new tokens are taken one after the other, and so give to the last bit what they give in calls of their own:
// a verified token must be the token that would have been decoded.
constexpr int64_t kOneByOne = 8;

int64_t parts(int64_t work, int64_t most) {
  return std::clamp<int64_t>(work / kPartWork, 1, std::max<int64_t>(most, 1));
}

// Memory that a thread keeps for one purpose, so that no call maps and clears fresh memory.
template <int Purpose, class Number>
Number* scratch(int64_t count) {
  thread_local std::vector<Number> buffer;
  if (int64_t(buffer.size()) < count) buffer.resize(count);
  return buffer.data();
}

// The new tokens of every row and head [B, K, T, H], without padding, as the ring will hold them.
template <class Number>
struct Fresh {
  Number *keys, *values;
};

// Queries, and the new keys and values in the numbers of the ring.
template <class Number>
Fresh<Number> prepare(Pool& pool, AttentionArgs& a) {
  const int64_t count = a.batch * a.tokens, size = count * a.kv_heads * a.width;
  const auto narrow = kernels().attention.of(Number{}).narrow;
  a.queries = scratch<0, float>((a.heads + a.kv_heads) * count * a.width);
  a.new_keys = a.queries + a.heads * count * a.width;
  Number* keys = scratch<1, Number>(2 * size);
  Number* values = keys + size;
  const int64_t shares = parts(count * (a.heads + a.kv_heads) * a.width * 8, std::min(count, 4 * pool.threads()));
  parallel_for(pool, shares, [&](int64_t i) {
    for (int64_t at = count * i / shares; at < count * (i + 1) / shares; ++at) {
      const int64_t row = at / a.tokens;
      kernels().attention.prepare(a, row, at % a.tokens);
      if (a.positions[at] < 0) continue;
      for (int64_t head = 0; head < a.kv_heads; ++head) {
        const int64_t first = (row * a.kv_heads + head) * a.tokens;
        const int64_t to = (first + a.positions[at] - a.lengths[row]) * a.width;
        narrow(a.new_keys + (first + at % a.tokens) * a.width, a.width, keys + to);
        narrow(a.v + (at * a.kv_heads + head) * a.width, a.width, values + to);
      }
    }
  });
  return {keys, values};
}

int64_t count_new(const AttentionArgs& a, int64_t row) {
  const int32_t* positions = a.positions + row * a.tokens;
  return std::count_if(positions, positions + a.tokens, [](int32_t position) { return position >= 0; });
}

template <class Number>
Past<Number> see(const AttentionArgs& a, const Ring<Number>& ring, const Fresh<Number>& fresh, int64_t row,
                 int64_t head) {
  const int64_t length = a.lengths[row], pair = row * a.kv_heads + head;
  const int64_t begin = std::max<int64_t>({0, length - ring.slots, length - a.window + 1});
  const int64_t slot = begin % ring.slots, front = std::min(length - begin, ring.slots - slot);
  const Number* keys = ring.keys + pair * ring.slots * a.width;
  const Number* values = ring.values + pair * ring.slots * a.width;
  const int64_t added = count_new(a, row), first = pair * a.tokens * a.width;
  return {begin,
          length - begin + added,
          {{keys + slot * a.width, values + slot * a.width, front},
           {keys, values, length - begin - front},
           {fresh.keys + first, fresh.values + first, added}}};
}

// Stores the new tokens of one row and head, the last `slots` of them if there are more.
template <class Number>
void insert(const AttentionArgs& a, const Ring<Number>& ring, const Fresh<Number>& fresh, int64_t row, int64_t head) {
  const int64_t pair = row * a.kv_heads + head, added = count_new(a, row);
  for (int64_t i = std::max<int64_t>(added - ring.slots, 0); i < added; ++i) {
    const int64_t to = (pair * ring.slots + (a.lengths[row] + i) % ring.slots) * a.width;
    const int64_t from = (pair * a.tokens + i) * a.width;
    std::memcpy(ring.keys + to, fresh.keys + from, a.width * sizeof(Number));
    std::memcpy(ring.values + to, fresh.values + from, a.width * sizeof(Number));
  }
}

// A few queries: each loop shares out rows and heads, and, where there are few, keys, queries or columns of each.
template <class Number>
void attend_directly(Pool& pool, const AttentionArgs& a, const std::vector<Past<Number>>& pasts, int64_t total) {
  const RingKernels<Number>& kernel = kernels().attention.of(Number{});
  const int64_t all = pasts.size(), rows = a.tokens * a.group(), lanes = a.width / kLanes;
  const int64_t threads = (pool.threads() + all - 1) / all;
  float* weights = scratch<2, float>(all * rows * total);

  const int64_t shares = parts(rows * total * a.width, threads);
  parallel_for(pool, all * shares, [&](int64_t i) {
    const int64_t pair = i / shares, share = i % shares;
    float* scores = weights + pair * rows * total;
    for (const Stretch<Number>& stretch : pasts[pair].stretches) {
      const int64_t first = stretch.count * share / shares, last = stretch.count * (share + 1) / shares;
      kernel.score(a.queries + pair * rows * a.width, rows, a.width, stretch.keys + first * a.width, last - first,
                   scores + first, total);
      scores += stretch.count;
    }
  });
  const int64_t cuts = parts(rows * total * kExponential, std::min(threads, rows));
  parallel_for(pool, all * cuts, [&](int64_t i) {
    const int64_t pair = i / cuts, cut = i % cuts;
    kernels().attention.weigh(a, pasts[pair].begin, pasts[pair].count, pair / a.kv_heads, rows * cut / cuts,
                              rows * (cut + 1) / cuts, weights + pair * rows * total, total);
  });
  const int64_t stripes = std::min(shares, lanes);
  parallel_for(pool, all * stripes, [&](int64_t i) {
    const int64_t pair = i / stripes, stripe = i % stripes;
    kernel.mix(a, pasts[pair], weights + pair * rows * total, total, pair / a.kv_heads, pair % a.kv_heads,
               lanes * stripe / stripes * kLanes, lanes * (stripe + 1) / stripes * kLanes);
  });
}

// Many queries: the keys are laid side by side first, sixteen in a panel, which eight queries share.
template <class Number>
void attend_by_panels(Pool& pool, const AttentionArgs& a, const std::vector<Past<Number>>& pasts, int64_t longest) {
  const RingKernels<Number>& kernel = kernels().attention.of(Number{});
  const int64_t all = pasts.size(), rows = a.tokens * a.group();
  const int64_t panels = (longest + kLanes - 1) / kLanes, room = panels * kLanes * a.width;
  float* keys = scratch<2, float>(all * room);

  parallel_for(pool, all * panels, [&](int64_t i) {
    const int64_t pair = i / panels, first = i % panels * kLanes;
    const Number* found[kLanes];
    int64_t count = 0, at = 0;
    for (const Stretch<Number>& stretch : pasts[pair].stretches) {
      for (int64_t j = std::max<int64_t>(first + count - at, 0); j < stretch.count && count < kLanes; ++j) {
        found[count++] = stretch.keys + j * a.width;
      }
      at += stretch.count;
    }
    if (count > 0) kernel.panel(found, count, a.width, keys + pair * room + first * a.width);
  });

  const int64_t tiles = (rows + kAttentionRows - 1) / kAttentionRows;
  const int64_t shares = parts(rows * longest * a.width, std::min(tiles, 4 * pool.threads()));
  parallel_for(pool, all * shares, [&](int64_t i) {
    const int64_t pair = i / shares, share = i % shares;
    float* scores = scratch<3, float>(kAttentionRows * panels * kLanes);
    kernel.attend(a, pasts[pair], keys + pair * room, pair / a.kv_heads, pair % a.kv_heads,
                  tiles * share / shares * kAttentionRows,
                  std::min(tiles * (share + 1) / shares * kAttentionRows, rows), scores);
  });
}

std::string check(const AttentionArgs& a, int64_t slots) {
  if (a.width % kLanes != 0 || a.kv_heads < 1 || a.heads % a.kv_heads != 0 || slots < 1 || a.window < 1 ||
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
  return {};
}

// The new tokens of every row one after the other, each in a call of its own.
template <class Number>
std::string take_one_by_one(Pool& pool, const AttentionArgs& a, Ring<Number> ring) {
  const int64_t wide = a.heads * a.width, narrow = a.kv_heads * a.width;
  std::vector<float> q(a.batch * wide), k(a.batch * narrow), v(k), rotation(a.batch * a.rotated), y(q);
  std::vector<int32_t> positions(a.batch), lengths(a.lengths, a.lengths + a.batch);
  AttentionArgs one = a;
  one.tokens = 1, one.q = q.data(), one.k = k.data(), one.v = v.data(), one.rotation = rotation.data();
  one.positions = positions.data(), one.lengths = lengths.data(), one.y = y.data();
  for (int64_t t = 0; t < a.tokens; ++t) {
    for (int64_t row = 0; row < a.batch; ++row) {
      const int64_t at = row * a.tokens + t;
      std::copy_n(a.q + at * wide, wide, &q[row * wide]);
      std::copy_n(a.k + at * narrow, narrow, &k[row * narrow]);
      std::copy_n(a.v + at * narrow, narrow, &v[row * narrow]);
      std::copy_n(a.rotation + at * a.rotated, a.rotated, rotation.data() + row * a.rotated);
      positions[row] = a.positions[at];
    }
    const std::string wrong = attention(pool, one, ring);
    if (!wrong.empty()) return wrong;
    for (int64_t row = 0; row < a.batch; ++row) {
      std::copy_n(&y[row * wide], wide, a.y + (row * a.tokens + t) * wide);
      lengths[row] += positions[row] >= 0;
    }
  }
  return {};
}

}  // namespace

template <class Number>
std::string attention(Pool& pool, AttentionArgs a, Ring<Number> ring) {
  const std::string wrong = check(a, ring.slots);
  if (!wrong.empty() || a.batch == 0 || a.tokens == 0) return wrong;
  if (1 < a.tokens && a.tokens <= kOneByOne) return take_one_by_one(pool, a, ring);
  if (a.tokens == 1) a.window = std::min(a.window, ring.slots);  // a single token is one of those that the ring holds
  const Fresh<Number> fresh = prepare<Number>(pool, a);
  const int64_t all = a.batch * a.kv_heads;
  std::vector<Past<Number>> pasts(all);
  int64_t longest = 0;
  for (int64_t pair = 0; pair < all; ++pair) {
    pasts[pair] = see(a, ring, fresh, pair / a.kv_heads, pair % a.kv_heads);
    longest = std::max(longest, pasts[pair].count);
  }
  if (a.tokens * a.group() <= kDirectRows) {
    attend_directly(pool, a, pasts, longest);
  } else {
    attend_by_panels(pool, a, pasts, longest);
  }
  parallel_for(pool, all, [&](int64_t i) { insert(a, ring, fresh, i / a.kv_heads, i % a.kv_heads); });
  return {};
}

template std::string attention(Pool&, AttentionArgs, Ring<float>);
template std::string attention(Pool&, AttentionArgs, Ring<Bfloat16>);

}  // namespace gemwright
