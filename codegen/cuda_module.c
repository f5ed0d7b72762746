// The text of one program of CUDA kernels.
//
// A program is cx_launch.h and then one namespace a kernel. A template is included there with its
// definitions set, which are undefined behind it, so that the next kernel may be the same template
// with others; its functions are called by CX_NAME, CX_NAME_1, ... An emitted kernel stands there
// as text. Names end with a hash of what the kernel is made from, so the text of a kernel is the
// same in every program that has it.
#include <stdlib.h>
#include <string.h>

#include "codegen/cuda_module.h"
#include "compiler/util.h"

const char *cuda_choice_symbol(Arena *arena, const CudaChoice *choice)
{
    const char *key = arena_printf(arena, "%s %s", choice->file, choice->definitions);
    return arena_printf(arena, "%s_%012llx", choice->name,
                        (unsigned long long)hash_bytes(key, strlen(key)) >> 16);
}

CudaModuleKernel cuda_module_kernel(Arena *arena, const CudaChoice *choice)
{
    return (CudaModuleKernel){.symbol = cuda_choice_symbol(arena, choice),
                              .file = choice->file,
                              .definitions = choice->definitions,
                              .phases = choice->phases,
                              .maps = choice->maps > 0};
}

// "NAME" or "NAME_2"
static void write_name(FILE *out, const char *name, uint32_t phase)
{
    fputs(name, out);
    if (phase > 0)
        fprintf(out, "_%u", phase);
}

// Each "NAME=VALUE" of the definitions as a line that sets it, or undoes it.
static void write_definitions(FILE *out, const char *definitions, bool set)
{
    for (const char *at = definitions; at && *at;) {
        size_t length = strcspn(at, " "), name = strcspn(at, "= ");
        if (length > 0 && set)
            fprintf(out, "#define %.*s %.*s\n", (int)name, at,
                    name < length ? (int)(length - name - 1) : 1,
                    name < length ? at + name + 1 : "1");
        else if (length > 0)
            fprintf(out, "#undef %.*s\n", (int)name, at);
        at += length + (at[length] == ' ');
    }
}

static void write_kernel(FILE *out, const CudaModuleKernel *kernel)
{
    for (uint32_t phase = 0; phase < kernel->phases; phase++) {
        fprintf(out, "#define ");
        write_name(out, "CX_NAME", phase);
        fputc(' ', out);
        write_name(out, kernel->symbol, phase);
        fputc('\n', out);
    }
    write_definitions(out, kernel->definitions, true);
    fprintf(out, "namespace of_%s {\n", kernel->symbol);
    if (kernel->file)
        fprintf(out, "#include \"%s\"\n", kernel->file);
    else
        fputs(kernel->text, out);
    for (uint32_t phase = 0; phase < kernel->phases; phase++) {
        fprintf(out, "CX_ENTRY(");
        write_name(out, kernel->symbol, phase);
        fprintf(out, ")\n");
    }
    fprintf(out, "}\n");
    write_definitions(out, kernel->definitions, false);
    for (uint32_t phase = 0; phase < kernel->phases; phase++) {
        fprintf(out, "#undef ");
        write_name(out, "CX_NAME", phase);
        fputc('\n', out);
    }
}

char *cuda_module_text(const CudaModuleKernel *kernels, uint32_t count)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        bug("out of memory");
    bool emitted = false, maps = false;
    for (uint32_t i = 0; i < count; i++) {
        emitted |= kernels[i].file == NULL;
        maps |= kernels[i].maps;
    }
    fprintf(out, "#include \"cx_launch.h\"\n%s%s", emitted ? "#include \"cx_math.h\"\n" : "",
            maps ? "#include \"cx_hopper.h\"\n" : "");
    for (uint32_t i = 0; i < count; i++)
        write_kernel(out, &kernels[i]);
    if (fclose(out) != 0)
        bug("out of memory");
    return text;
}
