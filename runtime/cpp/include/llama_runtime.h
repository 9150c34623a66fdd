/*
 * Runs a llama-export bundle: text in, and text, tokens, embeddings or labels out. C99.
 *
 *   lr_model*     an opened bundle. Any number of threads may share it; it does not change.
 *   lr_generator  one caller's place in a model: its cache, its results, its last error. One thread at a time.
 *
 * - Every function that can fail returns an lr_status. What went wrong is told, as one sentence without a
 *   full stop, by lr_model_error or lr_generator_error until the next call on that handle.
 * - A generator is usable after any failed call, as if the call had not been made. A model whose opening failed
 *   is dead: it can be asked for its error, and must be freed.
 * - What a function gives out (texts, ids, results) belongs to its handle and is valid until the next
 *   call on that handle. Texts are UTF-8 and end in a NUL that their length does not count.
 * - Structs that callers fill begin with `size`; the function that initialises one sets it and all defaults.
 * - No exception leaves the library. NULL where something is needed is LR_ERROR_ARGUMENT, and nothing else
 *   happens. Free functions accept NULL.
 */
#ifndef LLAMA_RUNTIME_H
#define LLAMA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#if defined(LLAMA_RUNTIME_SHARED) && defined(__GNUC__)
#define LR_API __attribute__((visibility("default")))
#else
#define LR_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum lr_status {
    LR_OK = 0,
    LR_ERROR_ARGUMENT = 1,  /* NULL, or a struct that no function has initialised */
    LR_ERROR_LIBRARY = 2,   /* ONNX Runtime's library (or TensorRT's, or CUDA's) is missing or too old */
    LR_ERROR_MANIFEST = 3,  /* no bundle, a newer one, or files missing or changed */
    LR_ERROR_TOKENIZER = 4, /* tokenizer.bin is damaged, or there is none where text is given */
    LR_ERROR_PROMPT = 5,    /* the prompt is empty, too long, not UTF-8, or has an unknown token */
    LR_ERROR_CHAT = 6,      /* no chat roles, or messages that they have no place for */
    LR_ERROR_OPTION = 7,    /* an option is out of range or contradicts another */
    LR_ERROR_SESSION = 8,   /* ONNX Runtime cannot open or run the graph, or TensorRT the engine */
    LR_ERROR_MEMORY = 9,    /* no memory */
    LR_ERROR_CALLBACK = 10, /* a callback let an exception out */
    LR_ERROR_INTERNAL = 11  /* anything else: a bug in this library */
} lr_status;

typedef struct lr_model lr_model;
typedef struct lr_generator lr_generator;

/* The library's version, "0.1.0". */
LR_API const char* lr_version(void);

/* A status in one word: "ok", "manifest", ... */
LR_API const char* lr_status_name(int status);

/* ---- model ---- */

typedef struct lr_model_options {
    size_t size;
    int threads;              /* for the arithmetic; 0: every physical core that this process may use */
    const char* onnxruntime;  /* path of ONNX Runtime's library; NULL: LLAMA_RUNTIME_ONNXRUNTIME, then next to
                                 the executable, then the system's */
    size_t chunk_tokens;      /* the most prompt tokens in one run, which bounds its memory; 0: 512 */
    const char* device;       /* "cpu", or NULL; "tensorrt": one of the bundle's engines, on the first GPU */
    const char* engine;       /* which engine, by name; NULL: the only one */
    const char* tensorrt;     /* path of TensorRT's library; NULL: LLAMA_RUNTIME_TENSORRT, then the system's */
} lr_model_options;

LR_API void lr_model_options_init(lr_model_options* options);

/* Opens a bundle's folder. `*model` is set even where opening fails, for lr_model_error; free it in any case.
   `options` may be NULL. */
LR_API lr_status lr_model_open(const char* folder, const lr_model_options* options, lr_model** model);
LR_API void lr_model_free(lr_model* model);
LR_API const char* lr_model_error(const lr_model* model);
LR_API const char* lr_model_hint(const lr_model* model);

/* "text-generation", "feature-extraction", "text-classification", "token-classification" or
   "question-answering". NULL of a dead model. */
LR_API const char* lr_model_task(const lr_model* model);
LR_API int32_t lr_model_vocab_size(const lr_model* model);
LR_API int32_t lr_model_max_positions(const lr_model* model);
/* Whether texts can be given and taken; without, token ids alone. */
LR_API int lr_model_has_tokenizer(const lr_model* model);
/* Whether lr_chat can be used. */
LR_API int lr_model_has_chat(const lr_model* model);

/* ---- generator ---- */

/* Threads that share a model have a generator each. Free every generator before its model. */
LR_API lr_status lr_generator_new(const lr_model* model, lr_generator** generator);
LR_API void lr_generator_free(lr_generator* generator);
LR_API const char* lr_generator_error(const lr_generator* generator);
LR_API const char* lr_generator_hint(const lr_generator* generator);

/* ---- tokenizer ---- */

enum {
    LR_ADD_SPECIAL = 1,  /* BOS and EOS where the model wants them */
    LR_PARSE_SPECIAL = 2 /* the name of a special token in the text is that token: for rendered chat templates,
                            never for what a person typed */
};

LR_API lr_status lr_encode(lr_generator* generator, const char* text, size_t length, unsigned flags,
                           const int32_t** ids, size_t* count);
/* `skip_special` leaves special tokens out; else they are shown by name. */
LR_API lr_status lr_decode(lr_generator* generator, const int32_t* ids, size_t count, int skip_special,
                           const char** text, size_t* length);

/* ---- generation ---- */

typedef struct lr_options {
    size_t size;
    double temperature;        /* 0: greedy, the default */
    int32_t top_k;             /* 0: all */
    double top_p;              /* 1: all */
    double min_p;              /* 0: all */
    double repetition_penalty; /* 1: none */
    double presence_penalty;
    double frequency_penalty;
    int32_t no_repeat_ngram_size; /* 0: none */
    int32_t min_new_tokens;
    int32_t max_new_tokens; /* 128 */
    int has_seed;           /* 0: one is taken from the system, and told in the result */
    uint64_t seed;
    int32_t logprobs; /* -1: none; n: of the chosen token and of the n likeliest */
    int ignore_eos;
    int parse_special;      /* the prompt is a rendered chat template; nothing is added to it */
    const char* const* stop; /* strings that end the text and are not part of it */
    size_t stop_count;
    const int32_t* bias_tokens; /* what is added to a token's logit; minus infinity forbids it */
    const float* bias_values;
    size_t bias_count;
    int32_t prompt_lookup_num_tokens; /* so many are read ahead where the text repeats itself: the same tokens,
                                         from fewer runs; 0: none */
} lr_options;

LR_API void lr_options_init(lr_options* options);

typedef enum lr_finish {
    LR_FINISH_NONE = 0, /* not finished */
    LR_FINISH_EOS = 1,
    LR_FINISH_STOP = 2,
    LR_FINISH_LENGTH = 3,
    LR_FINISH_CANCELLED = 4 /* the callback said so */
} lr_finish;

typedef struct lr_logprob {
    int32_t token;
    double logprob;
} lr_logprob;

/* One token, and the text that it made safe to show, which may be empty. */
typedef struct lr_piece {
    int32_t token;
    const char* text;
    size_t length;
    lr_finish finish;
} lr_piece;

/* Called with every piece; anything but 0 ends the generation. */
typedef int (*lr_on_piece)(void* user, const lr_piece* piece);

typedef struct lr_result {
    const char* text;
    size_t length;
    const int32_t* tokens;
    size_t token_count;
    const int32_t* prompt_tokens;
    size_t prompt_token_count;
    lr_finish finish;
    uint64_t seed; /* repeats the draws */
    double prefill_ms;
    double decode_ms;
    const lr_logprob* logprobs; /* token_count x (1 + logprobs_top): the chosen one, then the likeliest */
    size_t logprobs_top;
} lr_result;

/* `options` and `on_piece` may be NULL; `result` too. A result of a failed call is all zeros. */
LR_API lr_status lr_generate(lr_generator* generator, const char* prompt, size_t length,
                             const lr_options* options, lr_on_piece on_piece, void* user, lr_result* result);
/* The same for a prompt of token ids, BOS included. */
LR_API lr_status lr_generate_ids(lr_generator* generator, const int32_t* ids, size_t count,
                                 const lr_options* options, lr_on_piece on_piece, void* user,
                                 lr_result* result);

typedef struct lr_message {
    const char* role;    /* "system", "user" or "assistant" */
    const char* content; /* ends in a NUL */
} lr_message;

/* Answers a chat: perhaps a system message, then user and assistant in turn, a user's message last. What the
   generator has read of the same chat before is not read again. */
LR_API lr_status lr_chat(lr_generator* generator, const lr_message* messages, size_t count,
                         const lr_options* options, lr_on_piece on_piece, void* user, lr_result* result);

/* ---- heads ---- */

/* How the states of a text's tokens become one vector. */
enum { LR_POOL_MEAN = 0, LR_POOL_LAST = 1, LR_POOL_FIRST = 2 };

LR_API lr_status lr_embed(lr_generator* generator, const char* text, size_t length, int pooling,
                          int normalize, const float** vector, size_t* count);

typedef struct lr_label {
    const char* label;
    double score;
    float logit;
} lr_label;

/* Every label with its score, in the model's order; `*best` is the index of the highest. */
LR_API lr_status lr_classify(lr_generator* generator, const char* text, size_t length, const lr_label** labels,
                             size_t* count, size_t* best);

typedef struct lr_span {
    const char* label; /* NULL of an answer */
    double score;
    size_t start; /* byte of the text */
    size_t end;   /* behind the last */
} lr_span;

/* A label for every word of the text: that of its first token. */
LR_API lr_status lr_tag(lr_generator* generator, const char* text, size_t length, const lr_span** spans,
                        size_t* count);
/* The span of the context that most likely answers the question, of at most 15 tokens. */
LR_API lr_status lr_answer(lr_generator* generator, const char* question, size_t question_length,
                           const char* context, size_t context_length, lr_span* answer);

/* ---- self-test ---- */

typedef struct lr_selftest_report {
    size_t answers;
    size_t tokens;
    size_t near_ties_taken;
    double largest_difference; /* over all probes */
    const char* const* differences; /* one sentence each; none where the bundle is right */
    size_t difference_count;
} lr_selftest_report;

/* Replays the bundle's known answers. LR_OK says that it ran, `difference_count` whether it is right. */
LR_API lr_status lr_selftest(lr_generator* generator, lr_selftest_report* report);

#ifdef __cplusplus
}
#endif

#endif
