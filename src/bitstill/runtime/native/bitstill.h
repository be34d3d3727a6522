/* The native runtime's interface: structures filled in by Python, and the few functions that it calls.

   A network is a list of steps over values. A value is a matrix of floats, (rows, width), or, once quantized, a
   matrix of codes; all values lie in one arena, whose layout is planned by Python. Weights are stored as *lines*: 64
   bytes that hold, for sixteen outputs and a few quads of four inputs each, one slice of the weights' codes.

       byte 4 n + j of a line, bits i * b to i * b + b - 1:  output n (of sixteen), input 4 (quads * line + i) + j

   so that a shift and a mask turn one line into operands for dot products, which take four bytes at once on every
   processor. Single bits may be stored as *nibbles* instead, which index tables of the sums of four inputs:

       byte 32 v + 16 h + n of a line, bits 4 i to 4 i + 3:  output n, the four inputs of quad 8 line + 4 v + 2 i + h */
#ifndef BITSTILL_H
#define BITSTILL_H

#include <stddef.h>
#include <stdint.h>

#define BS_INTERFACE 5 /* incremented when a structure changes */
#define BS_PANEL 16    /* outputs in a line */
#define BS_LINE 64     /* bytes in a line */
#define BS_ALIGN 64    /* rows of codes are padded to a multiple of this, and addresses are multiples of it */
#define BS_QUAD 4      /* inputs whose codes a dot product adds up at once */
#define BS_BLOCK 32    /* rows multiplied at once */
#define BS_SLICES 3    /* slices of a code: 4, 2 and 1 bits */
#define BS_PLANES 2    /* quantized matrices whose sum is one matrix, at most */
#define BS_EPILOGUES 6 /* elementwise operations after a step, and the end marker */

enum bs_op {
    BS_GATHER,
    BS_MAP,
    BS_QUANTIZE,
    BS_LINEAR,
    BS_CONVOLVE,
    BS_NORM,
    BS_ATTEND,
    BS_FIRST_TOKEN,
    BS_POOL,
    BS_INPUT,
    BS_FLATTEN,
    BS_ATTEND_RANGES,
    BS_OPS
};
enum bs_function { BS_NONE, BS_RELU, BS_GELU, BS_GELU_TANH, BS_TANH };
enum bs_epilogue_kind { BS_END, BS_AFFINE, BS_FUNCTION, BS_ADD };
enum bs_form { BS_LINES_1 = 1, BS_LINES_2 = 2, BS_LINES_4 = 4, BS_NIBBLES = 16 };
enum bs_range { BS_DYNAMIC, BS_CLIP, BS_STEP };
enum bs_pooling { BS_POOL_MAX, BS_POOL_MEAN };
enum bs_layout { BS_LAYOUT_BITS, BS_LAYOUT_TRITS, BS_LAYOUT_BYTES };

/* Whether threads wait for each other before a step: always; never, if each reads only rows that it wrote itself;
   or only if rows are few, because a product then splits outputs rather than rows between threads. */
enum bs_sync { BS_SYNC_ALWAYS, BS_SYNC_NEVER, BS_SYNC_FEW_ROWS };

/* Rows in the layout of the file, for tables that are read row by row. */
typedef struct {
    const uint8_t *codes; /* (rows, bytes) */
    const float *levels;  /* by code */
    const float *scale;   /* (rows or 1, groups) */
    const float *offset;  /* as scale, or NULL */
    int64_t bytes, trits, bits;
} bs_rows_plane;

typedef struct {
    int64_t rows, length;       /* length: numbers in a row */
    int64_t groups, group;      /* groups of a row with a scale each, and their size */
    int64_t scale_rows, planes; /* rows of scales: 1, or one for each row */
    bs_rows_plane plane[BS_PLANES];
    const uint8_t *mask; /* (rows, mask_bytes), or NULL */
    int64_t mask_bytes;
    const float *dense; /* (rows, length), if not packed */
} bs_table;

/* One plane of a matrix: levels times scales, plus offsets. */
typedef struct {
    const uint8_t *lines[BS_SLICES]; /* (panels, lines, 64) */
    int32_t bits[BS_SLICES], shift[BS_SLICES], form[BS_SLICES];
    int32_t slices, first, step; /* level = first + step * code */
    const float *levels;         /* levels by code */
    const float *scale, *offset; /* (panels, groups, 16); offset may be NULL */
    const int32_t *sums;         /* sums of codes, shaped as scale */
} bs_plane;

typedef struct {
    int64_t outputs, inputs, padded; /* padded: codes in a row of inputs */
    int64_t groups, group;           /* groups of inputs with a scale each, and their size */
    int64_t planes;
    bs_plane plane[BS_PLANES];
    const uint8_t *mask;       /* one slice of one bit, or NULL */
    const float *dense;        /* (panels, inputs, 16), if not packed */
    const float *weight_sums;  /* (panels, 16): sum of the weights of an output; only for inputs with a shift */
} bs_matrix;

/* An elementwise operation on a step's result. */
typedef struct {
    int32_t kind, function, value, pad; /* value: the value to add */
    const float *scale, *shift;         /* per channel, padded to whole panels; scale may be NULL */
} bs_epilogue;

/* Rule for quantizing a value: code = clamp(round(x / scale) + zero, low, high). */
typedef struct {
    int32_t bits, symmetric, range;
    int32_t rows_per_range; /* rows that share a range; 0: all of them */
    float low, high, step;
} bs_rule;

typedef struct {
    int32_t op, input, input_2, input_3, output;
    int32_t input_4;   /* of attention: ranges of all probabilities, if the rule has one range for all */
    int32_t sync;      /* bs_sync */
    int32_t quantized; /* whether the input is codes; of attention, whether probabilities are quantized by `rule` */
    const bs_matrix *matrix;
    const bs_table *table;
    int32_t index; /* number of the list of indices, or of the input */
    int32_t heads, head_width;
    float epsilon;
    const float *weight, *bias; /* of a norm, per channel */
    bs_rule rule;
    int32_t height, width, channels, kernel_height, kernel_width, stride, padding, out_height, out_width, pooling;
    bs_epilogue epilogue[BS_EPILOGUES];
} bs_step;

/* One call. */
typedef struct {
    const bs_step *steps;
    int64_t n_steps;
    char *arena;
    const int64_t *offset; /* of each value, in bytes */
    const int64_t *rows;   /* of each value */
    const int64_t *width;  /* of each value: floats or codes in a row */
    const int32_t *const *indices;
    const float *const *inputs;
    const int64_t *starts;     /* (texts + 1,): the row at which each text begins */
    const uint8_t *masked;     /* (tokens,): 1 at masked tokens; or NULL */
    const int64_t *first_rows; /* (texts,): the row of a text's first token */
    int64_t texts, longest, samples;
    char *scratch;
    int64_t scratch_bytes;      /* per thread */
    const struct bs_tier *tier; /* tier for which the weights were packed; NULL: the one in use */
} bs_run;

#if defined(_WIN32)
#define BS_PUBLIC __declspec(dllexport)
#else
#define BS_PUBLIC __attribute__((visibility("default")))
#endif

/* Name of a tier that this processor can run, by index from the best; NULL after the last. */
BS_PUBLIC const char *bs_tier_name(int index);
/* Selects a tier for later calls. Returns 0, or -1 if it cannot run here. */
BS_PUBLIC int bs_use_tier(const char *name);
BS_PUBLIC int bs_interface(void);
BS_PUBLIC int64_t bs_sizeof(int which);

/* Tier in use, and the name of a tier. */
BS_PUBLIC const struct bs_tier *bs_tier_in_use(void);
BS_PUBLIC const char *bs_name_of(const struct bs_tier *tier);
/* Fastest form of slices of `bits` bits, for a tier or, for NULL, the one in use. */
BS_PUBLIC int bs_best_form(const struct bs_tier *tier, int bits);
/* Packs codes (outputs, inputs) into lines (panels, lines, 64): one slice, starting at bit `shift` of a code. */
BS_PUBLIC void bs_pack_lines(const uint8_t *codes, int64_t outputs, int64_t inputs, int64_t padded, int form, int shift,
                             uint8_t *lines);
/* Unpacks rows of a file, (rows, bytes), into codes (rows, length); layout is a bs_layout. */
BS_PUBLIC void bs_unpack_rows(const uint8_t *packed, int64_t rows, int64_t length, int64_t bytes, int layout, int bits,
                              uint8_t *codes);
/* Integer product without scales: codes (m, padded) x lines -> (m, panels * 16), for tests. */
BS_PUBLIC void bs_product(const int8_t *codes, int64_t m, const bs_matrix *matrix, int plane, int32_t *result,
                          int threads);
/* Scratch bytes per thread for these steps, if the longest text has `longest` tokens. */
BS_PUBLIC int64_t bs_scratch_bytes(const bs_step *steps, int64_t n, int64_t longest);
/* Runs all steps on at most `threads` threads. */
BS_PUBLIC void bs_execute(bs_run *run, int threads);

#endif
