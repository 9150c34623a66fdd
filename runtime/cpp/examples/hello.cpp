// The smallest C++ program: a bundle continues a prompt, piece by piece.
#include <iostream>
#include <llama_runtime.hpp>

int main(int argc, char** argv) {
    const std::string bundle = argc > 1 ? argv[1] : "artifacts/tiny";
    const std::string prompt = argc > 2 ? argv[2] : "Once upon a time";
    try {
        const llama_runtime::Model model(bundle);
        llama_runtime::Generator generator(model);
        llama_runtime::Options options;
        options.max_new_tokens = 32;
        generator.generate(prompt, options, [](std::string_view text) {
            std::cout << text << std::flush;
            return true;  // false ends the text
        });
        std::cout << "\n";
        return 0;
    } catch (const llama_runtime::Error& error) {
        std::cerr << "error: " << error.what() << "\n";
        return 1;
    }
}
