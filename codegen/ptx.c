/* PTX as a program for NVRTC, whose kernels are one piece of inline assembly each.
 *
 * From CUDA C to PTX takes NVRTC more than half of its time, and for the same text gives the same
 * PTX on every architecture, unless the text asks for it. So the PTX of the oldest one is assembled
 * for all others; but NVRTC has no door to its assembler. An asm statement is one: its text goes
 * through the compiler as it is.
 *
 * A kernel becomes one of the same name and launch bounds, with one parameter of the same size and
 * alignment, so that the names of PTX are the same again; its body is the old one in braces.
 * External shared memory is declared again, and an empty statement names it where the body does, so
 * that it is there.
 * PTX that holds anything else (functions, tables) is not taken.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/nvrtc.h"

enum { MOST_NAME = 256, MOST_SHARED = 4 };

typedef struct Reader {
    const char *at;                            // what is not read yet
    FILE *out;
    char shared[MOST_SHARED][MOST_NAME];       // names of external shared memory
    int shared_count;
} Reader;

// The line that begins here: where it ends, and where the next one begins.
static const char *line_end(const char *line)
{
    return line + strcspn(line, "\n");
}

static void next_line(Reader *reader)
{
    reader->at = line_end(reader->at);
    reader->at += *reader->at == '\n';
}

static bool begins(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

// Nothing but a comment or blanks, or what the assembler is told anew.
static bool is_idle(const char *line)
{
    const char *word = line + strspn(line, " \t\r");
    return *word == '\n' || *word == '\0' || begins(word, "//") || begins(line, ".version ") ||
           begins(line, ".target ") || begins(line, ".address_size ");
}

static bool take_shared(Reader *reader)
{
    unsigned align;
    int end = 0;
    if (reader->shared_count == MOST_SHARED)
        return false;
    char *name = reader->shared[reader->shared_count];
    if (sscanf(reader->at, ".extern .shared .align %u .b8 %255[A-Za-z0-9_$][];%n", &align, name,
               &end) != 2 || end == 0)
        return false;
    fprintf(reader->out, "extern __shared__ __align__(%u) unsigned char %s[];\n", align, name);
    reader->shared_count++;
    next_line(reader);
    return true;
}

// "NAME(", one parameter, ")": a struct of its size, and the name.
static bool take_parameter(Reader *reader, char *name)
{
    char parameter[MOST_NAME + 16], expected[MOST_NAME + 16];
    unsigned align, bytes;
    int end = 0;
    if (sscanf(reader->at, ".visible .entry %255[A-Za-z0-9_$](%n", name, &end) != 1 || end == 0)
        return false;
    next_line(reader);
    end = 0;
    if (sscanf(reader->at, " .param .align %u .b8 %271[A-Za-z0-9_$][%u]%n", &align, parameter,
               &bytes, &end) != 3 || end == 0 || reader->at[end] != '\n')
        return false;
    snprintf(expected, sizeof expected, "%s_param_0", name);
    next_line(reader);
    if (strcmp(parameter, expected) != 0 || !begins(reader->at, ")\n"))
        return false;
    next_line(reader);
    fprintf(reader->out, "struct __align__(%u) of_%s {\n    unsigned char bytes[%u];\n};\n", align,
            name, bytes);
    return true;
}

// Directives between the parameters and the body.
static bool take_bounds(Reader *reader, char *bounds, size_t size)
{
    unsigned threads = 0, blocks = 0, y = 1, z = 1;
    for (; !begins(reader->at, "{\n"); next_line(reader))
        if (sscanf(reader->at, ".maxntid %u, %u, %u", &threads, &y, &z) < 1 &&
            sscanf(reader->at, ".minnctapersm %u", &blocks) != 1)
            return false;
    next_line(reader);
    if (y != 1 || z != 1 || (blocks && !threads))
        return false;
    bounds[0] = '\0';
    if (blocks)
        snprintf(bounds, size, " __launch_bounds__(%u, %u)", threads, blocks);
    else if (threads)
        snprintf(bounds, size, " __launch_bounds__(%u)", threads);
    return true;
}

static bool is_name(char c)
{
    return isalnum((unsigned char)c) || c == '_' || c == '$';
}

// A name as a word of [text, end), and not of an instruction (st.shared).
static bool mentions(const char *text, const char *end, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = text; (at = strstr(at, name)) != NULL && at < end; at += length)
        if (!is_name(at[-1]) && at[-1] != '.' && !is_name(at[length]) && at[length] != '.')
            return true;
    return false;
}

static bool take_kernel(Reader *reader)
{
    char name[MOST_NAME], bounds[64];
    if (!take_parameter(reader, name) || !take_bounds(reader, bounds, sizeof bounds))
        return false;
    const char *end = strstr(reader->at, "\n}\n");
    if (!end)
        return false;
    fprintf(reader->out, "extern \"C\" __global__ void%s\n"
                         "    %s(const __grid_constant__ of_%s p)\n{\n", bounds, name, name);
    for (int i = 0; i < reader->shared_count; i++)
        if (mentions(reader->at, end, reader->shared[i]))
            fprintf(reader->out, "    asm volatile(\"\" ::\"l\"(%s));\n", reader->shared[i]);
    fprintf(reader->out, "    asm volatile(R\"PTX({\n%.*s\n})PTX\");\n}\n",
            (int)(end - reader->at), reader->at);
    reader->at = end + 3;
    return true;
}

char *ptx_program(const char *ptx)
{
    char *text = NULL;
    size_t size = 0;
    Reader reader = {.at = ptx, .out = open_memstream(&text, &size)};
    bool good = reader.out && !strstr(ptx, ")PTX\"");
    while (good && *reader.at) {
        if (is_idle(reader.at))
            next_line(&reader);
        else
            good = take_shared(&reader) || take_kernel(&reader);
    }
    if (reader.out && fclose(reader.out) != 0)
        good = false;
    if (!good)
        free(text);
    return good ? text : NULL;
}
