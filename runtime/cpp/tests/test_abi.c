/* The C ABI from C99: NULL and wrong arguments, handles after errors, callbacks, results. */
#include <llama_runtime.h>

#include <stdio.h>
#include <string.h>

static int failures = 0;

#define CHECK(condition)                                                      \
    do {                                                                      \
        if (!(condition)) {                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);   \
            ++failures;                                                       \
        }                                                                     \
    } while (0)

static void without_a_bundle(void) {
    lr_model* model = NULL;
    lr_generator* generator = NULL;
    lr_model_options options;

    CHECK(lr_model_open(NULL, NULL, NULL) == LR_ERROR_ARGUMENT);
    CHECK(lr_model_open(NULL, NULL, &model) == LR_ERROR_ARGUMENT && model != NULL);
    CHECK(strcmp(lr_model_error(model), "folder is NULL") == 0);
    lr_model_free(model);

    CHECK(lr_model_open("/nowhere", NULL, &model) == LR_ERROR_MANIFEST);
    CHECK(strstr(lr_model_error(model), "not a bundle") != NULL && lr_model_hint(model)[0] != '\0');
    /* A dead model can be asked, and refuses. */
    CHECK(lr_model_task(model) == NULL && lr_model_vocab_size(model) == 0 && lr_model_max_positions(model) == 0);
    CHECK(!lr_model_has_tokenizer(model) && !lr_model_has_chat(model));
    CHECK(lr_generator_new(model, &generator) == LR_ERROR_ARGUMENT && generator == NULL);
    lr_model_free(model);

    memset(&options, 0, sizeof options);
    CHECK(lr_model_open("/nowhere", &options, &model) == LR_ERROR_ARGUMENT);
    lr_model_free(model);
    lr_model_options_init(&options);
    options.threads = -1;
    CHECK(lr_model_open("/nowhere", &options, &model) == LR_ERROR_OPTION);
    lr_model_free(model);

    lr_model_free(NULL);
    lr_generator_free(NULL);
    lr_options_init(NULL);
    lr_model_options_init(NULL);
    CHECK(lr_generator_new(NULL, &generator) == LR_ERROR_ARGUMENT);
    CHECK(lr_generator_error(NULL)[0] != '\0' && lr_model_error(NULL)[0] != '\0');
    CHECK(lr_generate(NULL, "a", 1, NULL, NULL, NULL, NULL) == LR_ERROR_ARGUMENT);
    CHECK(strcmp(lr_status_name(LR_ERROR_PROMPT), "prompt") == 0 && lr_status_name(99) != NULL);
    CHECK(lr_version()[0] != '\0');
}

static int stop_at_three(void* user, const lr_piece* piece) {
    size_t* calls = user;
    (void)piece;
    return ++*calls == 3;
}

static void with_a_bundle(const char* bundle) {
    lr_model* model = NULL;
    lr_generator* generator = NULL;
    lr_options options;
    lr_result result, again;
    const int32_t* ids = NULL;
    const char* text = NULL;
    size_t count = 0, length = 0, calls = 0;
    const char* const prompt = "Once upon a time";
    const int32_t unknown[] = {1, 1000000}, negative[] = {-1};
    const lr_message message = {"user", "hi"}, broken = {NULL, "hi"};
    const float* vector = NULL;
    lr_span span;
    lr_model_options other;

    CHECK(lr_model_open(bundle, NULL, &model) == LR_OK);
    CHECK(lr_model_error(model)[0] == '\0' && strcmp(lr_model_task(model), "text-generation") == 0);
    CHECK(lr_generator_new(model, NULL) == LR_ERROR_ARGUMENT);
    CHECK(lr_generator_new(model, &generator) == LR_OK);
    lr_options_init(&options);
    options.max_new_tokens = 8;

    CHECK(lr_encode(generator, prompt, strlen(prompt), LR_ADD_SPECIAL, &ids, &count) == LR_OK && count > 1);
    CHECK(lr_encode(generator, NULL, 3, 0, &ids, &count) == LR_ERROR_ARGUMENT);
    CHECK(lr_encode(generator, NULL, 0, 0, &ids, &count) == LR_OK && count == 0);
    CHECK(lr_encode(generator, "a", 1, 0, NULL, &count) == LR_ERROR_ARGUMENT);
    CHECK(lr_decode(generator, NULL, 2, 1, &text, &length) == LR_ERROR_ARGUMENT);
    CHECK(lr_decode(generator, negative, 1, 1, &text, &length) == LR_OK && length == 0 && text[0] == '\0');

    CHECK(lr_generate(generator, prompt, strlen(prompt), &options, NULL, NULL, &result) == LR_OK);
    CHECK(result.token_count == 8 && result.finish == LR_FINISH_LENGTH && result.text[result.length] == '\0');
    CHECK(lr_generate(generator, prompt, strlen(prompt), &options, NULL, NULL, NULL) == LR_OK);

    /* After each failed call the generator does what it did before. */
    CHECK(lr_generate(generator, NULL, 5, &options, NULL, NULL, &result) == LR_ERROR_ARGUMENT);
    CHECK(result.text == NULL && result.token_count == 0 && lr_generator_error(generator)[0] != '\0');
    CHECK(lr_generate(generator, "\xff", 1, &options, NULL, NULL, &result) == LR_ERROR_PROMPT);
    CHECK(lr_generate_ids(generator, NULL, 0, &options, NULL, NULL, &result) == LR_ERROR_PROMPT);
    CHECK(lr_generate_ids(generator, unknown, 2, &options, NULL, NULL, &result) == LR_ERROR_PROMPT);
    CHECK(strstr(lr_generator_error(generator), "the prompt has token 1000000") != NULL);
    CHECK(lr_generate_ids(generator, negative, 1, &options, NULL, NULL, &result) == LR_ERROR_PROMPT);
    options.max_new_tokens = 1 << 30;
    CHECK(lr_generate(generator, prompt, strlen(prompt), &options, NULL, NULL, &result) == LR_ERROR_PROMPT);
    CHECK(strstr(lr_generator_error(generator), "positions") != NULL && lr_generator_hint(generator)[0] != '\0');
    options.max_new_tokens = 8;
    options.top_p = 2;
    CHECK(lr_generate(generator, prompt, strlen(prompt), &options, NULL, NULL, &result) == LR_ERROR_OPTION);
    options.top_p = 1;
    CHECK(lr_chat(generator, &message, 1, &options, NULL, NULL, &result) == LR_ERROR_CHAT);
    CHECK(lr_chat(generator, &broken, 1, &options, NULL, NULL, &result) == LR_ERROR_ARGUMENT);
    CHECK(lr_embed(generator, prompt, 4, LR_POOL_MEAN, 0, &vector, &count) == LR_ERROR_MANIFEST);
    CHECK(strstr(lr_generator_error(generator), "the bundle's task is text-generation") != NULL);
    CHECK(lr_embed(generator, prompt, 4, 7, 0, &vector, &count) == LR_ERROR_OPTION);
    CHECK(lr_answer(generator, prompt, 4, prompt, 4, &span) == LR_ERROR_MANIFEST);
    CHECK(lr_answer(generator, prompt, 4, prompt, 4, NULL) == LR_ERROR_ARGUMENT);
    CHECK(lr_selftest(generator, NULL) == LR_ERROR_ARGUMENT);
    CHECK(lr_generate(generator, prompt, strlen(prompt), &options, NULL, NULL, &again) == LR_OK);
    CHECK(again.token_count == 8 && lr_generator_error(generator)[0] == '\0');

    CHECK(lr_generate(generator, prompt, strlen(prompt), &options, stop_at_three, &calls, &result) == LR_OK);
    CHECK(calls == 3 && result.token_count == 3 && result.finish == LR_FINISH_CANCELLED);
    lr_generator_free(generator);
    lr_model_free(model);

    lr_model_options_init(&other);
    other.onnxruntime = "/nowhere/libonnxruntime.so";
    CHECK(lr_model_open(bundle, &other, &model) == LR_ERROR_LIBRARY);
    CHECK(strstr(lr_model_error(model), "libonnxruntime.so") != NULL);
    lr_model_free(model);
}

int main(int argc, char** argv) {
    without_a_bundle();
    if (argc > 1) with_a_bundle(argv[1]);
    printf("%d failures\n", failures);
    return failures != 0;
}
