// Heads that read whole texts: embeddings, labels of texts and of words, answers.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "generate.h"

namespace llama {

struct Label {
    std::string name;
    double score;
    float logit;
};

struct Span {
    std::string label;
    double score;
    size_t start, end;  // bytes of the text
};

std::vector<float> embed(const Model& model, std::string_view text, int pooling, bool normalize);
std::vector<Label> classify(const Model& model, std::string_view text);
std::vector<Span> tag(const Model& model, std::string_view text);
Span answer(const Model& model, std::string_view question, std::string_view context);

}  // namespace llama
