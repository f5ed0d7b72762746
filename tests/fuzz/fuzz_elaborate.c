// link: pvdm_compiler
// Any text is elaborated as a model file, its gradients are built, and what comes out is verified:
// it is refused with a message, or it is sound.
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "compiler/program.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static FILE *nowhere;
    static char path[64];
    if (!nowhere) {
        nowhere = fopen("/dev/null", "w");
        snprintf(path, sizeof path, "/tmp/fuzz-%ld.model", (long)getpid());
    }
    FILE *file = fopen(path, "wb");
    if (!nowhere || !file || fwrite(data, 1, size, file) != size || fclose(file) != 0)
        abort();
    Arena *arena = arena_new();
    Sources *sources = sources_new(arena);
    diag_init(sources, nowhere);
    ElabOptions options = {.path = path, .real = DT_F32};
    Module *module = elaborate(arena, sources, &options);
    diag_flush();
    if (module) {
        verify_module(module);
        grad_module(module);
        verify_module(module);
    }
    diag_init(NULL, nowhere);
    arena_free(arena);
    return 0;
}
