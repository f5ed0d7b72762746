// link: pvdm_grammar
// Any bytes are parsed, their messages and their tree are printed; nothing may crash or hang.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/ast.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static FILE *nowhere;
    if (!nowhere)
        nowhere = fopen("/dev/null", "w");
    char *text = malloc(size + 1);
    if (!nowhere || !text)
        abort();
    memcpy(text, data, size);
    text[size] = '\0';
    Arena *arena = arena_new();
    Sources *sources = sources_new(arena);
    diag_init(sources, nowhere);
    Ast *tree = parse_model(sources, sources_add_text(sources, "fuzz.model", text));
    ast_print(nowhere, tree);
    diag_flush();
    diag_init(NULL, nowhere);
    arena_free(arena);
    free(text);
    return 0;
}
