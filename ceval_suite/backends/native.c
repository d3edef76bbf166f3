/* Attention of packed tokens: see native.py.
 *
 * A work item is one node of the pack under one key head. Its queries (tokens times the query heads
 * of the group) go over keys in blocks with a running softmax: first the kept keys, which all of
 * them see, then the packed ones above the node and its own, causally. Keys lie in panels, BLOCK
 * side by side, so that a vector holds the scores of LANES keys; values lie as they come. Nothing
 * is computed for a key that no query of a group sees.
 *
 * Vectors are GNU C's: the compiler splits them where registers are narrower.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define LANES 16
#define BLOCK 64 /* keys of a panel */
#define ROWS 6   /* queries of a tile: ROWS x BLOCK scores fill the registers */
#define TILES 4  /* tiles that go over a panel while it is in the cache */
#define WIDE (BLOCK / LANES)

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef struct {
    const void *data;
    int64_t head, token; /* strides in elements; a token's numbers lie side by side */
} Rows;

typedef struct {
    Rows query, key, value, kept_key, kept_value;
    void *out; /* [tokens, heads, value width] */
    const int64_t *from, *to, *depth, *above_at; /* per node; above_at has one more */
    const int64_t *above;
    int64_t nodes, heads, key_heads, key_width, value_width, deepest;
    int64_t bfloat16;
    float scale;
} Call;

static inline float number(const void *data, int64_t at, int bf16) {
    if (!bf16)
        return ((const float *)data)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)data)[at] << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint16_t narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16); /* to the nearest, ties to even */
}

static inline vec broadcast(float x) { return x - (vec){}; }

static inline vec load(const float *p) {
    vec x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline void store(float *p, vec x) { memcpy(p, &x, sizeof x); }

/* e^x for x <= 0, to two units in the last place; 0 below -87 */
static inline vec exponential(vec x) {
    const vec magic = broadcast(12582912.0f); /* its last bits count whole numbers */
    ivec seen = x > broadcast(-87.0f);
    vec t = x * 1.44269504f + magic, n = t - magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return (vec)(((ivec)p + ((ivec)t << 23)) & seen);
}

static inline vec larger(vec a, vec b) {
    ivec first = a > b;
    return (vec)(((ivec)a & first) | ((ivec)b & ~first));
}

static inline float largest(const float *s) {
    float half[LANES];
    vec m = load(s);
    for (int j = 1; j < WIDE; j++)
        m = larger(m, load(s + j * LANES));
    store(half, m);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++)
            half[i] = half[i] > half[i + n] ? half[i] : half[i + n];
    return half[0];
}

/* Numbers of a panel, in floats: key_width x BLOCK keys, then BLOCK x value_width (rounded up). */
#ifdef __AVX512BF16__
#define PAIRS 1
#else
#define PAIRS 0
#endif

static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Put one key and its value into their places; with pairs, two numbers share a 32-bit place. */
static void put(const Call *c, int pairs, float *keys, float *values, int64_t j, const Rows *key,
                const Rows *value, int64_t head, int64_t token) {
    int64_t d = c->key_width, w = up(c->value_width, LANES), n = c->value_width;
    int64_t k = head * key->head + token * key->token, v = head * value->head + token * value->token;
    if (pairs) {
        const uint16_t *ks = (const uint16_t *)key->data + k, *vs = (const uint16_t *)value->data + v;
        uint16_t *to = (uint16_t *)keys, *tv = (uint16_t *)values;
        for (int64_t i = 0; i < d; i++)
            to[((i / 2) * BLOCK + j) * 2 + i % 2] = ks[i];
        for (int64_t i = 0; i < n; i++)
            tv[((j / 2) * w + i) * 2 + j % 2] = vs[i];
        return;
    }
    for (int64_t i = 0; i < d; i++)
        keys[i * BLOCK + j] = number(key->data, k + i, (int)c->bfloat16);
    for (int64_t i = 0; i < n; i++)
        values[j * w + i] = number(value->data, v + i, (int)c->bfloat16);
}

/* scores[ROWS][BLOCK] of ROWS queries against a panel */
static inline void score(int pairs, const float *q, int64_t qs, const float *keys, int64_t d,
                         float scale, float *scores) {
    vec s[ROWS][WIDE] = {};
#if PAIRS
    if (pairs) {
        for (int64_t i = 0; i < d / 2; i++)
            for (int r = 0; r < ROWS; r++) {
                __m512bh a = (__m512bh)_mm512_set1_ps(q[r * qs + i]);
                for (int j = 0; j < WIDE; j++) {
                    __m512bh b = (__m512bh)load(keys + i * BLOCK + j * LANES);
                    s[r][j] = (vec)_mm512_dpbf16_ps((__m512)s[r][j], a, b);
                }
            }
    } else
#endif
        for (int64_t i = 0; i < d; i++)
            for (int r = 0; r < ROWS; r++) {
                vec a = broadcast(q[r * qs + i]);
                for (int j = 0; j < WIDE; j++)
                    s[r][j] += a * load(keys + i * BLOCK + j * LANES);
            }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < WIDE; j++)
            store(scores + r * BLOCK + j * LANES, s[r][j] * scale);
}

/* sums[ROWS][n * LANES] = sums * fade + shares[ROWS][BLOCK] times values */
static inline __attribute__((always_inline)) void add(int pairs, int n, const float *shares,
                                                      const float *values, int64_t w,
                                                      const float *fade, float *sums, int64_t used) {
    vec s[ROWS][WIDE];
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < n; j++)
            s[r][j] = load(sums + r * w + j * LANES) * fade[r];
#if PAIRS
    if (pairs) {
        for (int64_t k = 0; k < (used + 1) / 2; k++)
            for (int r = 0; r < ROWS; r++) {
                __m512bh a = (__m512bh)_mm512_set1_ps(shares[r * BLOCK + k]);
                for (int j = 0; j < n; j++) {
                    __m512bh b = (__m512bh)load(values + k * w + j * LANES);
                    s[r][j] = (vec)_mm512_dpbf16_ps((__m512)s[r][j], a, b);
                }
            }
    } else
#endif
        for (int64_t k = 0; k < used; k++)
            for (int r = 0; r < ROWS; r++) {
                vec a = broadcast(shares[r * BLOCK + k]);
                for (int j = 0; j < n; j++)
                    s[r][j] += a * load(values + k * w + j * LANES);
            }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < n; j++)
            store(sums + r * w + j * LANES, s[r][j]);
}

/* One panel for ROWS queries, of which query r sees the first limit[r] keys. */
static void step(int pairs, const Call *c, const float *q, int64_t qs, const float *keys,
                 const float *values, const int64_t *limit, float *sums, float *top, float *total) {
    float scores[ROWS * BLOCK] __attribute__((aligned(64))), fade[ROWS];
    int64_t w = up(c->value_width, LANES), used = 0;
    score(pairs, q, qs, keys, c->key_width, c->scale, scores);
    for (int r = 0; r < ROWS; r++) {
        float *s = scores + r * BLOCK;
        int64_t seen = limit[r] < BLOCK ? limit[r] : BLOCK;
        used = seen > used ? seen : used;
        for (int64_t j = seen < 0 ? 0 : seen; j < BLOCK; j++)
            s[j] = -__builtin_inff();
        float high = largest(s);
        high = high > top[r] ? high : top[r];
        vec sum = {};
        for (int j = 0; j < WIDE; j++) {
            vec p = exponential(load(s + j * LANES) - high);
            sum += p;
            store(s + j * LANES, p);
        }
        fade[r] = top[r] == high ? 1 : exponential(broadcast(top[r] - high))[0];
        store(total + r * LANES, load(total + r * LANES) * fade[r] + sum);
        top[r] = high;
#if PAIRS
        if (pairs) /* narrow them where they lie: the first half of the row */
            for (int j = 0; j < WIDE; j++) {
                __m256bh small = _mm512_cvtneps_pbh((__m512)load(s + j * LANES));
                memcpy((uint16_t *)s + j * LANES, &small, sizeof small);
            }
#endif
    }
    for (int64_t at = 0; at < w; at += BLOCK) {
        int64_t n = (w - at) / LANES;
        float *to = sums + at;
        const float *from = values + at;
        if (n >= 4)
            add(pairs, 4, scores, from, w, fade, to, used);
        else if (n == 3)
            add(pairs, 3, scores, from, w, fade, to, used);
        else if (n == 2)
            add(pairs, 2, scores, from, w, fade, to, used);
        else
            add(pairs, 1, scores, from, w, fade, to, used);
    }
}

typedef struct {
    float *own, *queries, *sums, *top, *total;
} Room;

/* One node under one key head. */
static void item(int pairs, const Call *c, int64_t node, int64_t head, const float *kept, Room *room) {
    int64_t d = c->key_width, w = up(c->value_width, LANES), groups = c->heads / c->key_heads;
    int64_t panel = BLOCK * (d + w), qs = pairs ? d / 2 : d;
    int64_t from = c->from[node], length = c->to[node] - from, depth = c->depth[node];
    int64_t first = c->above_at[node], above = c->above_at[node + 1] - first, own = above + length;
    memset(room->own, 0, (size_t)(up(own, BLOCK) / BLOCK * panel) * sizeof(float));
    for (int64_t j = 0; j < own; j++) {
        float *p = room->own + j / BLOCK * panel;
        int64_t token = j < above ? c->above[first + j] : from + j - above;
        put(c, pairs, p, p + BLOCK * d, j % BLOCK, &c->key, &c->value, head, token);
    }
    int64_t all = length * groups;
    for (int64_t at = 0; at < all; at += ROWS * TILES) {
        int64_t count = all - at < ROWS * TILES ? all - at : ROWS * TILES;
        int64_t tiles = (count + ROWS - 1) / ROWS, limit[ROWS * TILES], here[ROWS];
        for (int64_t r = 0; r < tiles * ROWS; r++) {
            /* rows beyond the last repeat it and are thrown away */
            int64_t row = at + (r < count ? r : count - 1), token = row / groups;
            int64_t h = head * groups + row % groups;
            int64_t q = h * c->query.head + (from + token) * c->query.token;
            if (pairs)
                memcpy(room->queries + r * qs, (const uint16_t *)c->query.data + q, (size_t)d * 2);
            else
                for (int64_t i = 0; i < d; i++)
                    room->queries[r * qs + i] = number(c->query.data, q + i, (int)c->bfloat16);
            limit[r] = above + token + 1;
            room->top[r] = -__builtin_inff();
            store(room->total + r * LANES, (vec){});
        }
        memset(room->sums, 0, (size_t)(tiles * ROWS * w) * sizeof(float));
        for (int part = 0; part < 2; part++) {
            int64_t end = part ? limit[tiles * ROWS - 1] : depth;
            const float *panels = part ? room->own : kept;
            for (int64_t k = 0; k < end; k += BLOCK, panels += panel)
                for (int64_t t = 0; t < tiles; t++) {
                    for (int r = 0; r < ROWS; r++)
                        here[r] = (part ? limit[t * ROWS + r] : depth) - k;
                    step(pairs, c, room->queries + t * ROWS * qs, qs, panels, panels + BLOCK * d,
                         here, room->sums + t * ROWS * w, room->top + t * ROWS,
                         room->total + t * ROWS * LANES);
                }
        }
        for (int64_t r = 0; r < count; r++) {
            int64_t row = at + r, token = from + row / groups, h = head * groups + row % groups;
            int64_t to = (token * c->heads + h) * c->value_width;
            float total = 0;
            for (int i = 0; i < LANES; i++)
                total += room->total[r * LANES + i];
            float share = 1 / total;
            for (int64_t i = 0; i < c->value_width; i++) {
                float x = room->sums[r * w + i] * share;
                if (c->bfloat16)
                    ((uint16_t *)c->out)[to + i] = narrow(x);
                else
                    ((float *)c->out)[to + i] = x;
            }
        }
    }
}

/* 0, or 1 when there is no memory for the panels. */
int ceval_attend(const Call *c) {
    int64_t d = c->key_width, w = up(c->value_width, LANES), panel = BLOCK * (d + w);
    int pairs = PAIRS && c->bfloat16 && d % 2 == 0, failed = 0;
    int64_t deep = up(c->deepest, BLOCK) / BLOCK, longest = 0, rows = ROWS * TILES;
    for (int64_t n = 0; n < c->nodes; n++) {
        int64_t own = c->above_at[n + 1] - c->above_at[n] + c->to[n] - c->from[n];
        longest = own > longest ? own : longest;
    }
    longest = up(longest, BLOCK) / BLOCK;
    float *kept = calloc((size_t)(deep * c->key_heads * panel + 1), sizeof(float));
    if (!kept)
        return 1;
#pragma omp parallel
    {
        Room room;
        size_t need = (size_t)(longest * panel + rows * (d + w + 1 + LANES));
        float *space = malloc(need * sizeof(float));
        if (!space) {
#pragma omp atomic write
            failed = 1;
        }
        room.own = space;
        room.queries = space + longest * panel;
        room.sums = room.queries + rows * d;
        room.top = room.sums + rows * w;
        room.total = room.top + rows;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < deep * c->key_heads; i++) {
            int64_t head = i / deep, begin = i % deep * BLOCK;
            float *p = kept + i * panel;
            for (int64_t j = 0; j < BLOCK && begin + j < c->deepest; j++)
                put(c, pairs, p, p + BLOCK * d, j, &c->kept_key, &c->kept_value, head, begin + j);
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < c->nodes * c->key_heads; i++)
            if (space) {
                int64_t head = i / c->nodes;
                /* the two kinds are compiled apart */
                if (pairs)
                    item(1, c, i % c->nodes, head, kept + head * deep * panel, &room);
                else
                    item(0, c, i % c->nodes, head, kept + head * deep * panel, &room);
            }
        free(space);
    }
    free(kept);
    return failed;
}
