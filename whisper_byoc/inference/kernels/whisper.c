/* Whisper's encoder and decoder on a CPU. The mathematics is openai-whisper's model.py.
 *
 * Called by `native.py`, which owns all memory. Threads are OpenMP's; the symbols of its runtime are
 * left open and found in the one that torch has loaded, so that both use the same threads.
 */

#include "kernels.h"

#include <omp.h>
#include <stddef.h>
#include <time.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#define WIDTH 64 /* of a head, in every Whisper model */
#define BLOCK_ROWS 24 /* encoder rows that one thread takes through a layer while they are in its cache */
#define EXPORT __attribute__((visibility("default")))

typedef struct {
    Norm attention_norm;
    Linear qkv, out;
    Norm cross_norm; /* the decoder's only */
    Linear cross_query, cross_out;
    Norm mlp_norm;
    Linear up, down;
} Layer;

typedef struct {
    int32_t state, heads, mels, vocabulary, encoder_layers, decoder_layers, num_watched, threads;
    Linear conv1, conv2, cross_kv, words;
    Norm encoder_norm, decoder_norm;
    const float *audio_positions; /* (1500, state) */
    const float *text_positions;  /* (448, state) */
    const half *embedding;        /* (vocabulary, state) */
    const Layer *encoder, *decoder;
    const int32_t *watched; /* (decoder layers, heads): a watched head's number, or -1 */
    char *workspace;        /* 64-byte aligned */
    double *seconds;        /* of the first thread, by `Part` */
} Model;

typedef enum { CONVOLUTION, ENCODER, CROSS, DECODER, PROJECTION, PARTS } Part;

/* One window's keys and values for the decoder's cross-attentions. keys: (layers, heads, length/LANES,
 * WIDTH, LANES); values: (layers, heads, length, WIDTH); bias: (length,), added to the scores; length a
 * multiple of LANES. */
typedef struct {
    half *keys, *values;
    const float *bias;
    int32_t length;
} Encoded;

/* One decode of a window. own: (room, layers, heads, 2, WIDTH), the keys and values of its tokens, and of
 * other decodes of the window; slots: (positions,), where in there those of each position are; scores:
 * (positions, watched heads, window.length), what its tokens' queries gave with the window's keys, or null. */
typedef struct {
    Encoded window;
    float *own, *scores;
    const int32_t *slots;
} Cache;

/* One token; its keys and values enter a cache at `position`. */
typedef struct {
    int32_t cache, token, position;
} Row;

/* A token and its logit. */
typedef struct {
    int32_t token;
    float logit;
} Best;

/* A row whose next token is wanted: one where mask (vocabulary,) is 0 and not -inf; any if it is null.
 * best: (num_best,), for the best of them, the best first. */
typedef struct {
    int32_t row, num_best;
    const float *mask;
    Best *best;
} Wanted;

/* The best of the allowed tokens, its logit, and the logarithm of the sum of the exponentials of the
 * logits of all of them; -1 and -inf where none is allowed. */
typedef struct {
    int32_t token;
    float logit, log_sum;
} Choice;

EXPORT int32_t whisper_lanes(void) { return LANES; }
EXPORT int32_t whisper_tile(void) { return TILE; }
EXPORT int32_t whisper_takes_bytes(void) { return HAS_BYTES; }

#define AT(type, field) (int32_t)offsetof(type, field)
/* The structs that `native.py` fills in: the size of each, and where its fields are, in its order. */
EXPORT const int32_t whisper_layouts[] = {
    sizeof(Linear), AT(Linear, outputs), AT(Linear, inputs), AT(Linear, format), AT(Linear, limit),
    AT(Linear, weight), AT(Linear, scale), AT(Linear, bias),
    sizeof(Norm), AT(Norm, gain), AT(Norm, shift),
    sizeof(Layer), AT(Layer, attention_norm), AT(Layer, qkv), AT(Layer, out), AT(Layer, cross_norm),
    AT(Layer, cross_query), AT(Layer, cross_out), AT(Layer, mlp_norm), AT(Layer, up), AT(Layer, down),
    sizeof(Model), AT(Model, state), AT(Model, heads), AT(Model, mels), AT(Model, vocabulary),
    AT(Model, encoder_layers), AT(Model, decoder_layers), AT(Model, num_watched), AT(Model, threads),
    AT(Model, conv1), AT(Model, conv2), AT(Model, cross_kv), AT(Model, words), AT(Model, encoder_norm), AT(Model, decoder_norm),
    AT(Model, audio_positions), AT(Model, text_positions), AT(Model, embedding), AT(Model, encoder),
    AT(Model, decoder), AT(Model, watched), AT(Model, workspace), AT(Model, seconds),
    sizeof(Encoded), AT(Encoded, keys), AT(Encoded, values), AT(Encoded, bias), AT(Encoded, length),
    sizeof(Cache), AT(Cache, window), AT(Cache, own), AT(Cache, scores), AT(Cache, slots),
    sizeof(Row), AT(Row, cache), AT(Row, token), AT(Row, position),
    sizeof(Best), AT(Best, token), AT(Best, logit),
    sizeof(Wanted), AT(Wanted, row), AT(Wanted, num_best), AT(Wanted, mask), AT(Wanted, best),
    sizeof(Choice), AT(Choice, token), AT(Choice, logit), AT(Choice, log_sum),
};
EXPORT const int32_t whisper_layouts_length = sizeof whisper_layouts / sizeof *whisper_layouts;

/* Add the time since *since to a part's, and set *since to now. */
static void count_time(const Model *m, Part part, double *since) {
    if (omp_get_thread_num()) return;
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    double now = (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
    if (*since > 0) m->seconds[part] += now - *since;
    *since = now;
}

static size_t rounded_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

/* The memory of one call, given out from its beginning; without `base` only the bytes are counted. */
typedef struct {
    char *base;
    size_t used;
} Workspace;

static void *take(Workspace *w, size_t bytes) {
    char *taken = w->base ? w->base + w->used : NULL;
    w->used += rounded_up(bytes, 64);
#ifdef __SANITIZE_ADDRESS__
    /* What lies behind each part is nobody's, so that the sanitizer sees who leaves his own. */
    w->used += 64;
    if (taken) {
        ASAN_UNPOISON_MEMORY_REGION(taken, bytes);
        ASAN_POISON_MEMORY_REGION(taken + bytes, w->base + w->used - taken - bytes);
    }
#endif
    return taken;
}

/* ---- encoder ---------------------------------------------------------------------------------- */

/* What a thread of the encoder works in. */
typedef struct {
    float *rows, *wide, *scores;
    Quantised q;
} Scratch;

static Scratch take_scratch(const Model *m, Workspace *w, int frames) {
    int window = 3 * m->state > 4 * m->state ? 3 * m->state : 4 * m->state;
    Scratch s;
    s.rows = take(w, sizeof(float) * (2 * BLOCK_ROWS + 1) * m->state);
    s.wide = take(w, sizeof(float) * BLOCK_ROWS * rounded_up(2 * m->state * m->decoder_layers + window, TILE));
    s.scores = take(w, sizeof(float) * BLOCK_ROWS * rounded_up(frames, TILE));
    s.q.values = take(w, sizeof(int16_t) * (2 * BLOCK_ROWS + 1) * window);
    s.q.scale = take(w, sizeof(float) * (2 * BLOCK_ROWS + 1));
    s.q.offset = take(w, sizeof(int32_t) * (2 * BLOCK_ROWS + 1));
    return s;
}

typedef struct {
    float *keys, *values; /* (heads, frames/LANES, WIDTH, LANES) and (heads, frames, WIDTH), frames rounded up */
} Attention;

typedef struct {
    const Model *m;
    int frames, padded; /* padded: frames rounded up to a tile of keys */
    int16_t *mel;       /* (2 frames + 2, mels), a silent row before and after */
    float mel_scale;
    float *x, *query; /* (frames, state) */
    Attention attention[2];
    const Encoded *window;
} Encoding;

static void take_encoding(Encoding *e, Workspace *w) {
    size_t row = sizeof(float) * e->m->state;
    e->mel = take(w, sizeof(int16_t) * (2 * e->frames + 2) * e->m->mels);
    e->x = take(w, row * e->frames);
    e->query = take(w, row * e->frames);
    for (int i = 0; i < 2; i++) {
        e->attention[i].keys = take(w, row * e->padded);
        e->attention[i].values = take(w, row * e->padded);
    }
}

/* Bytes of workspace that `whisper_encode` needs for so many frames. */
EXPORT int64_t whisper_encode_workspace(const Model *m, int32_t frames) {
    Encoding e = {.m = m, .frames = frames, .padded = (int)rounded_up(frames, TILE)};
    Workspace w = {0};
    take_encoding(&e, &w);
    for (int t = 0; t < m->threads; t++) take_scratch(m, &w, frames);
    return (int64_t)w.used;
}

static void run_layer(const Linear *layer, Scratch *s, const float *rows, int num_rows, int ld, float *out, int out_ld,
                      Mode mode) {
    for (int r = 0; r < num_rows; r++) quantise_row(layer, rows + (size_t)r * ld, &s->q, r);
    multiply(layer, &s->q, num_rows, 0, layer->outputs / TILE, out, out_ld, mode);
}

static void normalise_rows(Norm norm, const float *x, float *out, int rows, int n) {
    for (int r = 0; r < rows; r++) normalise_row(norm, x + (size_t)r * n, out + (size_t)r * n, n);
}

static void gelu_all(float *x, size_t n) {
    for (size_t i = 0; i < n; i += LANES) store(x + i, gelu(load(x + i)));
}

/* The two convolutions for rows [first, first + rows), into e->x. */
static void convolve(Encoding *e, Scratch *s, int first, int rows) {
    const Model *m = e->m;
    int state = m->state, from = 2 * first - 1, count = 2 * rows + 1;
    Quantised windows = {.values = NULL, .scale = s->q.scale, .offset = s->q.offset};
    for (int r = 0; r < count; r++) windows.scale[r] = e->mel_scale;
    /* windows of 3 mel frames overlap: each is a row of its own to the product */
    int16_t *gathered = s->q.values;
    for (int r = 0; r < count; r++) {
        int frame = from + r < 0 ? 0 : from + r;
        memcpy(gathered + (size_t)r * 3 * m->mels, e->mel + (size_t)frame * m->mels, sizeof(int16_t) * 3 * m->mels);
    }
    windows.values = gathered;
    multiply(&m->conv1, &windows, count, 0, m->conv1.outputs / TILE, s->rows, state, SET);
    gelu_all(s->rows, (size_t)count * state);
    if (from < 0) memset(s->rows, 0, sizeof(float) * state);
    float *out = e->x + (size_t)first * state;
    run_layer(&m->conv2, s, s->rows, rows, 2 * state, out, state, SET);
    const float *positions = m->audio_positions + (size_t)first * state;
    for (size_t i = 0; i < (size_t)rows * state; i += LANES) store(out + i, gelu(load(out + i)) + load(positions + i));
}

/* Queries, keys and values of layer `index` for rows [first, first + rows). */
static void project(Encoding *e, Scratch *s, int index, int first, int rows) {
    const Model *m = e->m;
    const Layer *layer = m->encoder + index;
    Attention *a = e->attention + index % 2;
    int state = m->state, ld = layer->qkv.outputs;
    normalise_rows(layer->attention_norm, e->x + (size_t)first * state, s->rows, rows, state);
    run_layer(&layer->qkv, s, s->rows, rows, state, s->wide, ld, SET);
    for (int r = 0; r < rows; r++) {
        const float *source = s->wide + (size_t)r * ld;
        int t = first + r;
        memcpy(e->query + (size_t)t * state, source, sizeof(float) * state);
        for (int h = 0; h < m->heads; h++) {
            memcpy(a->values + ((size_t)h * e->padded + t) * WIDTH, source + 2 * state + h * WIDTH, sizeof(float) * WIDTH);
            float *keys = a->keys + ((size_t)h * e->padded + t / LANES * LANES) * WIDTH + t % LANES;
            for (int d = 0; d < WIDTH; d++) keys[(size_t)d * LANES] = source[state + h * WIDTH + d];
        }
    }
}

#define KEY_VECTORS 4

/* scores (rows, padded) of queries (rows, ld) with blocked keys; `rows` is constant after inlining. */
INLINE void score_rows(const float *query, int ld, const float *keys, int padded, float *scores, const int rows) {
    for (int t = 0; t < padded; t += KEY_VECTORS * LANES) {
        floats acc[TILE_ROWS][KEY_VECTORS];
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < KEY_VECTORS; v++) acc[r][v] = all(0);
        const float *k = keys + (size_t)t * WIDTH;
        for (int d = 0; d < WIDTH; d++, k += LANES)
            for (int v = 0; v < KEY_VECTORS; v++) {
                floats key = load(k + (size_t)v * WIDTH * LANES);
                for (int r = 0; r < rows; r++) acc[r][v] += query[(size_t)r * ld + d] * key;
            }
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < KEY_VECTORS; v++) store(scores + (size_t)r * padded + t + v * LANES, acc[r][v] * 0.125f);
    }
}

/* out (rows, ld) = weights (rows, padded) times values (count, WIDTH), divided by each row's divisor. */
INLINE void mix_rows(const float *weights, int padded, const float *values, int count, const float *divisor, float *out,
                     int ld, const int rows) {
    for (int part = 0; part < WIDTH; part += KEY_VECTORS * LANES) {
        floats acc[TILE_ROWS][KEY_VECTORS];
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < KEY_VECTORS; v++) acc[r][v] = all(0);
        const float *value = values + part;
        for (int t = 0; t < count; t++, value += WIDTH)
            for (int v = 0; v < KEY_VECTORS; v++) {
                floats x = load(value + v * LANES);
                for (int r = 0; r < rows; r++) acc[r][v] += weights[(size_t)r * padded + t] * x;
            }
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < KEY_VECTORS; v++)
                store(out + (size_t)r * ld + part + v * LANES, acc[r][v] * (1.0f / divisor[r]));
    }
}

INLINE void attend_rows(const Encoding *e, const Attention *a, int head, const float *query, float *scores, float *out,
                        const int rows) {
    int state = e->m->state;
    float divisor[TILE_ROWS];
    score_rows(query, state, a->keys + (size_t)head * e->padded * WIDTH, e->padded, scores, rows);
    for (int r = 0; r < rows; r++) {
        float *row = scores + (size_t)r * e->padded;
        for (int t = e->frames; t < e->padded; t++) row[t] = -INFINITY;
        divisor[r] = exponentials(row, (int)rounded_up(e->frames, LANES));
    }
    mix_rows(scores, e->padded, a->values + (size_t)head * e->padded * WIDTH, e->frames, divisor, out, state, rows);
}

/* Self-attention and MLP of layer `index` for rows [first, first + rows). */
static void attend(Encoding *e, Scratch *s, int index, int first, int rows) {
    const Model *m = e->m;
    const Layer *layer = m->encoder + index;
    const Attention *a = e->attention + index % 2;
    int state = m->state;
    float *x = e->x + (size_t)first * state;
    for (int h = 0; h < m->heads; h++) {
        const float *query = e->query + (size_t)first * state + h * WIDTH;
        int r = 0;
        for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
            attend_rows(e, a, h, query + (size_t)r * state, s->scores, s->rows + (size_t)r * state + h * WIDTH, TILE_ROWS);
        for (; r < rows; r++)
            attend_rows(e, a, h, query + (size_t)r * state, s->scores, s->rows + (size_t)r * state + h * WIDTH, 1);
    }
    run_layer(&layer->out, s, s->rows, rows, state, x, state, ADD);
    normalise_rows(layer->mlp_norm, x, s->rows, rows, state);
    int wide = layer->up.outputs;
    run_layer(&layer->up, s, s->rows, rows, state, s->wide, wide, SET);
    gelu_all(s->wide, (size_t)rows * wide);
    run_layer(&layer->down, s, s->wide, rows, wide, x, state, ADD);
}

static void put_key(half *keys, int d, int lane, floats from) {
    half narrow[LANES];
    store_half(narrow, from);
    for (int i = 0; i < LANES; i++) keys[(size_t)(d + i) * LANES + lane] = narrow[i];
}

/* The keys and values of all cross-attentions for rows [first, first + rows). */
static void finish(Encoding *e, Scratch *s, int first, int rows) {
    const Model *m = e->m;
    int state = m->state, ld = m->cross_kv.outputs;
    normalise_rows(m->encoder_norm, e->x + (size_t)first * state, s->rows, rows, state);
    run_layer(&m->cross_kv, s, s->rows, rows, state, s->wide, ld, SET);
    for (int r = 0; r < rows; r++)
        for (int lh = 0; lh < m->decoder_layers * m->heads; lh++) {
            int t = first + r, l = lh / m->heads, h = lh % m->heads;
            const float *source = s->wide + (size_t)r * ld + (size_t)l * 2 * state + h * WIDTH;
            half *keys = e->window->keys + ((size_t)lh * e->window->length + t / LANES * LANES) * WIDTH;
            half *values = e->window->values + ((size_t)lh * e->window->length + t) * WIDTH;
            for (int d = 0; d < WIDTH; d += LANES) {
                put_key(keys, d, t % LANES, load(source + d));
                store_half(values + d, load(source + state + d));
            }
        }
}

/* Quantise mel, float32 (2 frames + 2, mels), and clear what stands behind the last frame. */
static void begin(Encoding *e, const float *mel) {
    const Model *m = e->m;
    int count = (2 * e->frames + 2) * m->mels;
    float largest = 1e-12f;
    for (int i = 0; i < count; i++) largest = fabsf(mel[i]) > largest ? fabsf(mel[i]) : largest;
    e->mel_scale = largest / limit_of(&m->conv1);
    for (int i = 0; i < count; i++) e->mel[i] = (int16_t)lrintf(mel[i] / e->mel_scale);
    int whole = e->frames / LANES * LANES;
    for (int i = 0; i < 2; i++)
        for (int h = 0; h < m->heads; h++) {
            size_t from = ((size_t)h * e->padded + whole) * WIDTH, bytes = sizeof(float) * (e->padded - whole) * WIDTH;
            memset(e->attention[i].keys + from, 0, bytes);
            memset(e->attention[i].values + from, 0, bytes);
        }
}

/* Encode mel, float32 (2 frames + 2, mels) with a row of zeros before and after, into the keys and
 * values of a window, from its first position on: parts [from, to) of encoder_layers + 1, of which the
 * first begins with the convolutions. workspace: 64-byte aligned, keeps what one part leaves to the next. */
EXPORT void whisper_encode(const Model *m, char *workspace, const float *mel, int32_t frames, const Encoded *window,
                           int32_t from, int32_t to) {
    Encoding e = {.m = m, .frames = frames, .padded = (int)rounded_up(frames, TILE), .window = window};
    Workspace w = {.base = workspace};
    take_encoding(&e, &w);
    if (!from) begin(&e, mel);
    Scratch scratch[m->threads];
    for (int t = 0; t < m->threads; t++) scratch[t] = take_scratch(m, &w, frames);
    int blocks = (frames + BLOCK_ROWS - 1) / BLOCK_ROWS;
    int next[m->encoder_layers + 1];
    memset(next, 0, sizeof next);
#pragma omp parallel num_threads(m->threads)
    {
        Scratch *s = scratch + omp_get_thread_num();
        double since = 0;
        count_time(m, CONVOLUTION, &since);
        for (int layer = from; layer < to; layer++) {
            for (;;) {
                int block = __atomic_fetch_add(next + layer, 1, __ATOMIC_RELAXED);
                if (block >= blocks) break;
                int first = block * BLOCK_ROWS, rows = frames - first < BLOCK_ROWS ? frames - first : BLOCK_ROWS;
                if (layer == 0) convolve(&e, s, first, rows);
                else attend(&e, s, layer - 1, first, rows);
                count_time(m, layer ? ENCODER : CONVOLUTION, &since);
                if (layer < m->encoder_layers) project(&e, s, layer, first, rows);
                else finish(&e, s, first, rows);
                count_time(m, layer < m->encoder_layers ? ENCODER : CROSS, &since);
            }
#pragma omp barrier
            count_time(m, ENCODER, &since);
        }
    }
}

/* Copy positions first, first + stride, ... of one window's keys and values to another's, from position `at` on. */
EXPORT void whisper_append(const Model *m, const Encoded *from, int32_t first, int32_t stride, int32_t count,
                           const Encoded *to, int32_t at) {
    for (size_t lh = 0; lh < (size_t)m->decoder_layers * m->heads; lh++)
        for (int i = 0; i < count; i++) {
            size_t f = first + (size_t)i * stride, t = at + (size_t)i;
            memcpy(to->values + (lh * to->length + t) * WIDTH, from->values + (lh * from->length + f) * WIDTH,
                   sizeof(half) * WIDTH);
            const half *source = from->keys + (lh * from->length + f / LANES * LANES) * WIDTH + f % LANES;
            half *target = to->keys + (lh * to->length + t / LANES * LANES) * WIDTH + t % LANES;
            for (int d = 0; d < WIDTH; d++) target[(size_t)d * LANES] = source[(size_t)d * LANES];
        }
}

/* ---- decoder ---------------------------------------------------------------------------------- */

/* Rows that go through the decoder together; longer prompts and drafts go in parts, which bounds the workspace. */
#define MAX_ROWS 96

static int smaller_of(int a, int b) { return a < b ? a : b; }

/* Tiles of the vocabulary among which one thread chooses before the next are taken. A fixed number, so
 * that sums do not depend, in their last bits, on the number of threads. */
#define PIECE 16

/* Of the allowed logits of a piece: the largest, and the sum of the exponentials of what they are below it. */
typedef struct {
    float largest, sum;
} Partial;

typedef struct {
    float *x, *normal, *wide, *attended;
    Quantised q;
    float *scores; /* (threads, TILE_ROWS, score_length) */
    int score_length;
    int num_groups;
    int groups[MAX_ROWS + 1]; /* the first row of each group, and where the last one ends */
    int pieces;
    Partial *partial; /* (wanted, pieces) */
    int first;        /* of all rows, the one that is row 0 here */
} Decoding;

static void take_decoding(const Model *m, Decoding *d, Workspace *w, int num_rows, int num_wanted, int longest) {
    int widest = 4 * m->state, rows = smaller_of(num_rows, MAX_ROWS), wanted = smaller_of(num_wanted, MAX_ROWS);
    d->x = take(w, sizeof(float) * rows * m->state);
    d->normal = take(w, sizeof(float) * rows * m->state);
    d->attended = take(w, sizeof(float) * rows * m->state);
    d->wide = take(w, sizeof(float) * rows * widest);
    d->q.values = take(w, sizeof(int16_t) * rows * widest);
    d->q.scale = take(w, sizeof(float) * rows);
    d->q.offset = take(w, sizeof(int32_t) * rows);
    d->score_length = (int)rounded_up(longest, TILE);
    d->scores = take(w, sizeof(float) * m->threads * TILE_ROWS * d->score_length);
    d->pieces = (m->words.outputs / TILE + PIECE - 1) / PIECE;
    d->partial = take(w, sizeof(Partial) * wanted * d->pieces);
}

/* Bytes of workspace that `whisper_decode` needs. */
EXPORT int64_t whisper_decode_workspace(const Model *m, int32_t rows, int32_t wanted, int32_t longest) {
    Decoding d;
    Workspace w = {0};
    take_decoding(m, &d, &w, rows, wanted, longest);
    return (int64_t)w.used;
}

/* The calling thread's share [*begin, *end) of n pieces. */
static void share_of(int n, int *begin, int *end) {
    int threads = omp_get_num_threads(), t = omp_get_thread_num();
    *begin = (int)((int64_t)n * t / threads);
    *end = (int)((int64_t)n * (t + 1) / threads);
}

/* Each thread quantises its share of the rows, and after a barrier computes its share of the outputs. */
static void shared_layer(const Linear *layer, Decoding *d, const float *rows, int num_rows, int ld, float *out, int out_ld,
                         Mode mode) {
    int begin, end;
    share_of(num_rows, &begin, &end);
    for (int r = begin; r < end; r++) quantise_row(layer, rows + (size_t)r * ld, &d->q, r);
#pragma omp barrier
    share_of(layer->outputs / TILE, &begin, &end);
    multiply(layer, &d->q, num_rows, begin, end, out, out_ld, mode);
#pragma omp barrier
}

static void shared_norm(Norm norm, Decoding *d, int num_rows, int n) {
    int begin, end;
    share_of(num_rows, &begin, &end);
    for (int r = begin; r < end; r++) normalise_row(norm, d->x + (size_t)r * n, d->normal + (size_t)r * n, n);
    /* the same thread quantises the same rows next: no barrier */
}

/* Attention of a query to the first `count` keys, of which slot 0's is at `keys`, a slot's `step` floats behind the
 * one before; each value is behind its key. */
static void attend_own(const float *query, const float *keys, size_t step, const int32_t *slots, int count, float *scores,
                       float *out) {
    int padded = (int)rounded_up(count, LANES);
    for (int t = 0; t < count; t++) {
        floats acc = {0};
        const float *key = keys + slots[t] * step;
        for (int d = 0; d < WIDTH; d += LANES) acc += load(query + d) * load(key + d);
        scores[t] = sum_of(acc) * 0.125f;
    }
    for (int t = count; t < padded; t++) scores[t] = -INFINITY;
    float scale = 1.0f / exponentials(scores, padded);
    floats acc[WIDTH / LANES];
    for (int v = 0; v < WIDTH / LANES; v++) acc[v] = all(0);
    for (int t = 0; t < count; t++) {
        const float *value = keys + slots[t] * step + WIDTH;
        for (int v = 0; v < WIDTH / LANES; v++) acc[v] += scores[t] * load(value + v * LANES);
    }
    for (int v = 0; v < WIDTH / LANES; v++) store(out + v * LANES, acc[v] * scale);
}

#define SCORE_BLOCKS 4
#define MIX_ROWS (LANES == 16 ? 3 : 1) /* as many as there are registers for */

/* scores (rows, out_ld) of queries (rows, ld) with a window's keys; `rows` is constant after inlining. */
INLINE void score_cross(const float *query, int ld, const half *keys, int length, float *scores, int out_ld, const int rows) {
    int t = 0;
    for (; t + SCORE_BLOCKS * LANES <= length; t += SCORE_BLOCKS * LANES) {
        floats acc[TILE_ROWS][SCORE_BLOCKS];
        for (int r = 0; r < rows; r++)
            for (int b = 0; b < SCORE_BLOCKS; b++) acc[r][b] = all(0);
        const half *k = keys + (size_t)t * WIDTH;
        for (int d = 0; d < WIDTH; d++)
            for (int b = 0; b < SCORE_BLOCKS; b++) {
                floats key = load_half(k + ((size_t)b * WIDTH + d) * LANES);
                for (int r = 0; r < rows; r++) acc[r][b] += query[(size_t)r * ld + d] * key;
            }
        for (int r = 0; r < rows; r++)
            for (int b = 0; b < SCORE_BLOCKS; b++) store(scores + (size_t)r * out_ld + t + b * LANES, acc[r][b] * 0.125f);
    }
    for (; t < length; t += LANES) {
        floats acc[TILE_ROWS];
        for (int r = 0; r < rows; r++) acc[r] = all(0);
        const half *k = keys + (size_t)t * WIDTH;
        for (int d = 0; d < WIDTH; d++) {
            floats key = load_half(k + (size_t)d * LANES);
            for (int r = 0; r < rows; r++) acc[r] += query[(size_t)r * ld + d] * key;
        }
        for (int r = 0; r < rows; r++) store(scores + (size_t)r * out_ld + t, acc[r] * 0.125f);
    }
}

/* out (rows, ld) = weights (rows, weights_ld) times a window's values, scaled for each row. */
INLINE void mix_cross(const float *weights, int weights_ld, const half *values, int length, const float *scale, float *out,
                      int ld, const int rows) {
    floats acc[MIX_ROWS][2][WIDTH / LANES];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < WIDTH / LANES; v++) acc[r][0][v] = acc[r][1][v] = all(0);
    for (int t = 0; t < length; t += 2)
        for (int i = 0; i < 2; i++)
            for (int v = 0; v < WIDTH / LANES; v++) {
                floats value = load_half(values + (size_t)(t + i) * WIDTH + v * LANES);
                for (int r = 0; r < rows; r++) acc[r][i][v] += weights[(size_t)r * weights_ld + t + i] * value;
            }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < WIDTH / LANES; v++)
            store(out + (size_t)r * ld + v * LANES, (acc[r][0][v] + acc[r][1][v]) * scale[r]);
}

/* Attention of `rows` queries (rows, ld) to one head's keys of their window; kept: where each one's scores go, if not
 * null. A row's result does not depend on the others: only the loads of keys and values are shared. */
static void attend_cross(const float *query, int ld, const Encoded *s, size_t layer_head, float *scores, int score_ld,
                         float *const *kept, float *out, int rows) {
    const half *keys = s->keys + layer_head * s->length * WIDTH, *values = s->values + layer_head * s->length * WIDTH;
    float scale[TILE_ROWS];
    switch (rows) {
#if TILE_ROWS > 2
        case 6: score_cross(query, ld, keys, s->length, scores, score_ld, 6); break;
        case 5: score_cross(query, ld, keys, s->length, scores, score_ld, 5); break;
        case 4: score_cross(query, ld, keys, s->length, scores, score_ld, 4); break;
        case 3: score_cross(query, ld, keys, s->length, scores, score_ld, 3); break;
#endif
        case 2: score_cross(query, ld, keys, s->length, scores, score_ld, 2); break;
        default: score_cross(query, ld, keys, s->length, scores, score_ld, 1);
    }
    for (int r = 0; r < rows; r++) {
        float *row = scores + (size_t)r * score_ld;
        if (kept[r]) memcpy(kept[r], row, sizeof(float) * s->length);
        for (int t = 0; t < s->length; t += LANES) store(row + t, load(row + t) + load(s->bias + t));
        scale[r] = 1.0f / exponentials(row, s->length);
    }
    int r = 0;
    for (; r + MIX_ROWS <= rows; r += MIX_ROWS)
        mix_cross(scores + (size_t)r * score_ld, score_ld, values, s->length, scale + r, out + (size_t)r * ld, ld, MIX_ROWS);
    for (; r < rows; r++)
        mix_cross(scores + (size_t)r * score_ld, score_ld, values, s->length, scale + r, out + (size_t)r * ld, ld, 1);
}

static void decode_layer(const Model *m, int index, const Cache *caches, const Row *rows, int num_rows, Decoding *d) {
    const Layer *layer = m->decoder + index;
    int state = m->state, heads = m->heads, ld = layer->qkv.outputs, begin, end;
    size_t step = (size_t)m->decoder_layers * heads * 2 * WIDTH;
    float *scores = d->scores + (size_t)omp_get_thread_num() * TILE_ROWS * d->score_length;
    shared_norm(layer->attention_norm, d, num_rows, state);
    shared_layer(&layer->qkv, d, d->normal, num_rows, state, d->wide, ld, SET);
    share_of(num_rows * heads, &begin, &end);
    for (int i = begin; i < end; i++) {
        int r = i / heads, h = i % heads;
        const Cache *c = caches + rows[r].cache;
        float *own = c->own + c->slots[rows[r].position] * step + (size_t)(index * heads + h) * 2 * WIDTH;
        const float *source = d->wide + (size_t)r * ld + h * WIDTH;
        memcpy(own, source + state, sizeof(float) * WIDTH);
        memcpy(own + WIDTH, source + 2 * state, sizeof(float) * WIDTH);
    }
#pragma omp barrier
    for (int i = begin; i < end; i++) {
        int r = i / heads, h = i % heads;
        const Cache *c = caches + rows[r].cache;
        const float *own = c->own + (size_t)(index * heads + h) * 2 * WIDTH;
        attend_own(d->wide + (size_t)r * ld + h * WIDTH, own, step, c->slots, rows[r].position + 1, scores,
                   d->attended + (size_t)r * state + h * WIDTH);
    }
#pragma omp barrier
    shared_layer(&layer->out, d, d->attended, num_rows, state, d->x, state, ADD);
    shared_norm(layer->cross_norm, d, num_rows, state);
    shared_layer(&layer->cross_query, d, d->normal, num_rows, state, d->wide, state, SET);
    share_of(d->num_groups * heads, &begin, &end);
    for (int i = begin; i < end; i++) {
        int first = d->groups[i / heads], count = d->groups[i / heads + 1] - first, h = i % heads;
        int watched = m->watched[index * heads + h];
        float *kept[TILE_ROWS];
        for (int r = 0; r < count; r++) {
            const Cache *c = caches + rows[first + r].cache;
            size_t place = (size_t)rows[first + r].position * m->num_watched + watched;
            kept[r] = watched < 0 || !c->scores ? NULL : c->scores + place * c->window.length;
        }
        attend_cross(d->wide + (size_t)first * state + h * WIDTH, state, &caches[rows[first].cache].window,
                     (size_t)index * heads + h, scores, d->score_length, kept,
                     d->attended + (size_t)first * state + h * WIDTH, count);
    }
#pragma omp barrier
    shared_layer(&layer->cross_out, d, d->attended, num_rows, state, d->x, state, ADD);
    shared_norm(layer->mlp_norm, d, num_rows, state);
    int wide = layer->up.outputs;
    shared_layer(&layer->up, d, d->normal, num_rows, state, d->wide, wide, SET);
    share_of(num_rows, &begin, &end);
    for (int r = begin; r < end; r++) gelu_all(d->wide + (size_t)r * wide, wide);
    shared_layer(&layer->down, d, d->wide, num_rows, wide, d->x, state, ADD);
}

INLINE float allowed(const float *logits, const float *mask, int i) { return mask ? logits[i] + mask[i] : logits[i]; }
INLINE floats allowed_all(const float *logits, const float *mask, int i) {
    return mask ? load(logits + i) + load(mask + i) : load(logits + i);
}

/* The largest of logits [begin, end) with the mask added, and the sum of the exponentials. */
static Partial measure(const float *logits, const float *mask, int begin, int end) {
    floats most = all(-INFINITY), sums = {0};
    int i = begin;
    for (; i + LANES <= end; i += LANES) most = larger(most, allowed_all(logits, mask, i));
    float largest = largest_of(most);
    for (; i < end; i++) largest = allowed(logits, mask, i) > largest ? allowed(logits, mask, i) : largest;
    if (!(largest > -INFINITY)) return (Partial){-INFINITY, 0};
    for (i = begin; i + LANES <= end; i += LANES) sums += exponential(allowed_all(logits, mask, i) - largest);
    float sum = sum_of(sums);
    for (; i < end; i++) sum += expf(allowed(logits, mask, i) - largest);
    return (Partial){largest, sum};
}

/* Put a token among the best, of which `last` is the least, if it belongs there. */
static void insert(Best *best, int last, int token, float logit) {
    if (!(logit > best[last].logit)) return;
    for (; last && logit > best[last - 1].logit; last--) best[last] = best[last - 1];
    best[last] = (Best){token, logit};
}

/* The choice among a row's logits, of which each piece has been measured. */
static Choice choose_of(const Partial *partial, int pieces, const float *logits, const float *mask) {
    int best = 0;
    for (int p = 1; p < pieces; p++) best = partial[p].largest > partial[best].largest ? p : best;
    float largest = partial[best].largest, sum = 0;
    if (!(largest > -INFINITY)) return (Choice){-1, -INFINITY, -INFINITY};
    for (int p = 0; p < pieces; p++) sum += partial[p].sum * expf(partial[p].largest - largest);
    int token = best * PIECE * TILE;
    while (allowed(logits, mask, token) != largest) token++;
    return (Choice){token, largest, largest + logf(sum)};
}

/* The best allowed of a row's logits, in falling order, of equal ones the first; -1 and -inf behind the last. */
static void find_best(const Model *m, const Partial *partial, int pieces, const float *logits, const Wanted *w) {
    int last = w->num_best - 1;
    for (int n = 0; n <= last; n++) w->best[n] = (Best){-1, -INFINITY};
    for (int p = 0; p < pieces; p++) {
        if (!(partial[p].largest > w->best[last].logit)) continue;
        int i = p * PIECE * TILE, end = smaller_of(i + PIECE * TILE, m->vocabulary);
        while (i < end) {
            int step = i + LANES <= end ? LANES : 1;
            if (step == 1 || any_above(allowed_all(logits, w->mask, i), w->best[last].logit))
                for (int t = i; t < i + step; t++) insert(w->best, last, t, allowed(logits, w->mask, t));
            i += step;
        }
    }
}

/* Logits (wanted, words.outputs) of the wanted rows, and the best of them. */
static void choose(const Model *m, Decoding *d, const Wanted *wanted, int num_wanted, float *logits, Choice *choices) {
    int ld = m->words.outputs, tiles = ld / TILE, begin, end, first, last;
    share_of(num_wanted, &begin, &end);
    for (int i = begin; i < end; i++) {
        const float *row = d->normal + (size_t)(wanted[i].row - d->first) * m->state;
        quantise_row(&m->words, row, &d->q, i);
    }
#pragma omp barrier
    share_of(d->pieces, &first, &last);
    multiply(&m->words, &d->q, num_wanted, first * PIECE, smaller_of(last * PIECE, tiles), logits, ld, SET);
    for (int i = 0; i < num_wanted; i++)
        for (int p = first; p < last; p++) {
            int from = p * PIECE * TILE, to = smaller_of(from + PIECE * TILE, m->vocabulary);
            d->partial[(size_t)i * d->pieces + p] = measure(logits + (size_t)i * ld, wanted[i].mask, from, to);
        }
#pragma omp barrier
    for (int i = begin; i < end; i++) {
        const Partial *partial = d->partial + (size_t)i * d->pieces;
        choices[i] = choose_of(partial, d->pieces, logits + (size_t)i * ld, wanted[i].mask);
        if (wanted[i].num_best) find_best(m, partial, d->pieces, logits + (size_t)i * ld, wanted + i);
    }
}

/* Find the groups: up to TILE_ROWS rows behind one another, all of one window. */
static void group_rows(Decoding *d, const Cache *caches, const Row *rows, int num_rows) {
    d->num_groups = 0;
    for (int r = 0, first = 0; r < num_rows; r++) {
        int other = caches[rows[r].cache].window.keys != caches[rows[first].cache].window.keys;
        if (r && !other && r - first < TILE_ROWS) continue;
        d->groups[d->num_groups++] = first = r;
    }
    d->groups[d->num_groups] = num_rows;
}

/* `whisper_decode` for at most MAX_ROWS rows and what is wanted of them. */
static void decode_rows(const Model *m, Decoding *d, const Cache *caches, const Row *rows, int num_rows,
                        const Wanted *wanted, int num_wanted, float *logits, Choice *choices) {
    int state = m->state;
    group_rows(d, caches, rows, num_rows);
#pragma omp parallel num_threads(m->threads)
    {
        int begin, end;
        double since = 0;
        count_time(m, DECODER, &since);
        share_of(num_rows, &begin, &end);
        for (int r = begin; r < end; r++) {
            const half *token = m->embedding + (size_t)rows[r].token * state;
            const float *position = m->text_positions + (size_t)rows[r].position * state;
            for (int i = 0; i < state; i += LANES)
                store(d->x + (size_t)r * state + i, load_half(token + i) + load(position + i));
        }
        for (int layer = 0; layer < m->decoder_layers; layer++) decode_layer(m, layer, caches, rows, num_rows, d);
        count_time(m, DECODER, &since);
        if (num_wanted) {
            share_of(num_rows, &begin, &end);
            shared_norm(m->decoder_norm, d, num_rows, state);
#pragma omp barrier
            choose(m, d, wanted, num_wanted, logits, choices);
            count_time(m, PROJECTION, &since);
        }
    }
}

/* Take rows through the decoder, and choose among the logits of the wanted ones.
 *
 * Rows of one cache are in order of position, without gaps from what it holds, and no two rows share a slot;
 * those that are wanted in order, each once. longest: at least the length of every cache's window and the number of positions up to
 * every row's, itself included. logits: float32 (num_wanted, words.outputs); choices: (num_wanted,). */
EXPORT void whisper_decode(const Model *m, const Cache *caches, const Row *rows, int32_t num_rows, const Wanted *wanted,
                           int32_t num_wanted, int32_t longest, float *logits, Choice *choices) {
    Decoding d;
    Workspace w = {.base = m->workspace};
    take_decoding(m, &d, &w, num_rows, num_wanted, longest);
    int done = 0;
    for (d.first = 0; d.first < num_rows; d.first += MAX_ROWS) {
        int count = smaller_of(num_rows - d.first, MAX_ROWS), end = done;
        while (end < num_wanted && wanted[end].row < d.first + count) end++;
        decode_rows(m, &d, caches, rows + d.first, count, wanted + done, end - done,
                    logits + (size_t)done * m->words.outputs, choices + done);
        done = end;
    }
}
