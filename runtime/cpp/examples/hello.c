/* The smallest C program: a bundle continues a prompt, piece by piece. */
#include <llama_runtime.h>
#include <stdio.h>
#include <string.h>

static int print_piece(void* user, const lr_piece* piece) {
    (void)user;
    fwrite(piece->text, 1, piece->length, stdout);
    return 0; /* anything else ends the text */
}

int main(int argc, char** argv) {
    const char* bundle = argc > 1 ? argv[1] : "artifacts/tiny";
    const char* prompt = argc > 2 ? argv[2] : "Once upon a time";
    lr_model* model = NULL;
    lr_generator* generator = NULL;
    lr_options options;
    int failed = 1;

    lr_options_init(&options);
    options.max_new_tokens = 32;
    if (lr_model_open(bundle, NULL, &model) != LR_OK || lr_generator_new(model, &generator) != LR_OK) {
        fprintf(stderr, "error: %s\n", lr_model_error(model));
    } else if (lr_generate(generator, prompt, strlen(prompt), &options, print_piece, NULL, NULL) != LR_OK) {
        fprintf(stderr, "error: %s\n", lr_generator_error(generator));
    } else {
        printf("\n");
        failed = 0;
    }
    lr_generator_free(generator);
    lr_model_free(model);
    return failed;
}
