/* The native runtime's interface: structures that Python fills in, and the few functions that it calls.

   A network is a list of steps over values. A value is a matrix of floats, (rows, width), or, when it was quantized, a matrix of
   codes; all values lie in one arena whose places Python has planned. Weights are kept as *lines*: 64 bytes that hold, for
   sixteen outputs and a few quads of four inputs each, one slice of the weights' codes.

       byte 4 n + j of a line, bits i * b to i * b + b - 1:  output n (of sixteen), input 4 (quads * line + i) + j

   so that a shift and a mask make, of one line, operands of which every processor's dot product takes four bytes at once.
   Single bits may be kept as *nibbles* instead, which index tables of the sums of four inputs:

       byte 32 v + 16 h + n of a line, bits 4 i to 4 i + 3:  output n, the four inputs of quad 8 line + 4 v + 2 i + h */
#ifndef BITSTILL_H
#define BITSTILL_H

#include <stddef.h>
#include <stdint.h>

#define BS_INTERFACE 5 /* raised whenever a structure changes */
#define BS_PANEL 16    /* outputs in a line */
#define BS_LINE 64     /* bytes in a line */
#define BS_ALIGN 64    /* inputs of a row of codes are padded to this */
#define BS_BLOCK 32    /* rows that are multiplied at once */
#define BS_SLICES 3
#define BS_PLANES 2
#define BS_TAILS 6

enum bs_op { BS_GATHER, BS_MAP, BS_QUANTIZE, BS_LINEAR, BS_CONVOLVE, BS_NORM, BS_ATTEND, BS_TAKE, BS_POOL, BS_INPUT, BS_FLATTEN, BS_ATTEND_RANGES, BS_OPS };
enum bs_function { BS_NONE, BS_RELU, BS_GELU, BS_GELU_TANH, BS_TANH };
enum bs_tail_kind { BS_END, BS_AFFINE, BS_FUNCTION, BS_ADD };
enum bs_form { BS_LINES_1 = 1, BS_LINES_2 = 2, BS_LINES_4 = 4, BS_NIBBLES = 16 };
enum bs_waiting { BS_WAITS, BS_OWN_ROWS, BS_OWN_ROWS_IF_MANY };
enum bs_range { BS_DYNAMIC, BS_CLIP, BS_STEP };

/* Rows as the file holds them: for tables, which are read row by row. */
typedef struct {
    const uint8_t *codes; /* (rows, bytes) */
    const float *levels;  /* by code */
    const float *scale;   /* (rows or 1, groups) */
    const float *offset;  /* the same, or NULL */
    int64_t bytes, trits, bits;
} bs_rows_plane;

typedef struct {
    int64_t rows, length, groups, group; /* of scales: one row of them (scale_rows 1) or as many as there are */
    int64_t scale_rows, planes;
    bs_rows_plane plane[BS_PLANES];
    const uint8_t *mask; /* (rows, mask_bytes) or NULL */
    int64_t mask_bytes;
    const float *dense; /* (rows, length): not packed */
} bs_table;

/* One plane of a matrix: levels times scales, plus offsets. */
typedef struct {
    const uint8_t *lines[BS_SLICES]; /* (panels, lines, 64) */
    int32_t bits[BS_SLICES], shift[BS_SLICES], form[BS_SLICES];
    int32_t slices, first, step; /* level = first + step * code */
    const float *levels;         /* the same by code */
    const float *scale, *offset; /* (panels, groups, 16); offset may be NULL */
    const int32_t *sums;         /* of codes, as scale is */
} bs_plane;

typedef struct {
    int64_t outputs, inputs, padded; /* padded: inputs of a row of codes */
    int64_t groups, group;           /* groups of inputs with a scale each */
    int64_t planes;
    bs_plane plane[BS_PLANES];
    const uint8_t *mask;  /* one slice of one bit, or NULL */
    const float *dense;   /* (panels, inputs, 16): not packed */
    const float *weights; /* (panels, 16): sum of the weights of an output; only for inputs that are shifted */
} bs_matrix;

typedef struct {
    int32_t kind, function, value, pad; /* value: what is added */
    const float *by, *plus;             /* per channel, padded to whole panels */
} bs_tail;

/* The rule by which a value becomes codes: code = clamp(round(x / scale) + zero, low, high). */
typedef struct {
    int32_t bits, symmetric, range;
    int32_t span; /* 0: one range for all; 1: for each row; more: for so many rows together */
    float low, high, step;
} bs_rule;

typedef struct {
    int32_t op, input, input_2, input_3, output;
    int32_t input_4; /* of attention, ranges of all probabilities, where the rule has one for all */
    int32_t by_rows; /* whether a thread needs only its own rows of what was made before: bs_waiting */
    int32_t coded; /* whether its input is codes; of attention, whether probabilities become codes by `rule` */
    const bs_matrix *matrix;
    const bs_table *table;
    int32_t index; /* which list of indices */
    int32_t heads, head_width;
    float epsilon;
    const float *by, *plus;
    bs_rule rule;
    int32_t height, across, channels, kernel_y, kernel_x, stride, padding, out_height, out_across, mean;
    bs_tail tail[BS_TAILS];
} bs_step;

/* One call. */
typedef struct {
    const bs_step *steps;
    int64_t n_steps;
    char *arena;
    const int64_t *offset; /* of each value, in bytes */
    const int64_t *rows;   /* of each value */
    const int64_t *width;  /* of each value: floats, or codes, in a row */
    const int32_t *const *indices;
    const float *const *given;
    const int64_t *starts;  /* (texts + 1,): where texts begin */
    const uint8_t *hidden;  /* (tokens,): 1 where nothing may look; or NULL */
    const int64_t *first;   /* (texts,): the row of a text's first token */
    int64_t texts, longest, samples;
    char *scratch;
    int64_t scratch_bytes; /* for each thread */
    const struct bs_tier *tier; /* for which the weights were packed; NULL: that in use */
} bs_run;

/* A quantized value in the arena: scales, zero points, then codes. */
typedef struct {
    float *scale;  /* one for `span` rows */
    int32_t *zero; /* to take from a code; as scale */
    float *shift;  /* to add to a value; as scale */
    int8_t *codes; /* (rows, padded) */
} bs_codes;

#if defined(_WIN32)
#define BS_PUBLIC __declspec(dllexport)
#else
#define BS_PUBLIC __attribute__((visibility("default")))
#endif

/* The tiers that this processor can run, by number from the best; NULL after the last. */
BS_PUBLIC const char *bs_tier_name(int index);
/* Uses one tier from now on. Returns 0, or -1 where it cannot run here. */
BS_PUBLIC int bs_use_tier(const char *name);
BS_PUBLIC int bs_interface(void);
BS_PUBLIC int64_t bs_sizeof(int which);

/* The tier in use, and the name of one. */
BS_PUBLIC const struct bs_tier *bs_tier_in_use(void);
BS_PUBLIC const char *bs_name_of(const struct bs_tier *tier);
/* The form in which a tier, or for NULL that in use, multiplies slices of so many bits fastest. */
BS_PUBLIC int bs_best_form(const struct bs_tier *of, int bits);
/* Codes of sixteen outputs and all inputs as lines: codes (outputs, inputs) -> (panels, lines, 64), one slice. */
BS_PUBLIC void bs_pack_lines(const uint8_t *codes, int64_t outputs, int64_t inputs, int64_t padded, int form, int shift, uint8_t *lines);
/* Packed rows of a file to codes: layout 0 is bits, 1 trits, 2 bytes. */
BS_PUBLIC void bs_unpack_rows(const uint8_t *packed, int64_t rows, int64_t length, int64_t bytes, int layout, int bits, uint8_t *codes);
/* The bare integer product: codes (m, padded) x lines -> (m, panels * 16), for tests and for torch. */
BS_PUBLIC void bs_product(const int8_t *codes, int64_t m, const bs_matrix *matrix, int plane, int32_t *result, int threads);
BS_PUBLIC int64_t bs_scratch_bytes(const bs_step *steps, int64_t n, int64_t longest);
/* Runs all steps on up to so many threads. */
BS_PUBLIC void bs_execute(bs_run *run, int threads);

#endif
