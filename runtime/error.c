// Error objects, the three exits, and allocation that reports. See error.h.
#include "runtime/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *program = "pvdm";

void pv_set_program(const char *name)
{
    program = name;
}

const char *pv_program(void)
{
    return program;
}

// malloc'ed text; a short constant text in the place of one that does not fit into memory.
static char *format_text(const char *format, va_list list)
{
    char *text = NULL;
    if (vasprintf(&text, format, list) < 0)
        text = strdup("not enough memory");
    return text;
}

bool pv_error(PvError *error, PvStatus status, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    char *text = format_text(format, list); // before the old text goes: it may be an argument
    va_end(list);
    pv_error_free(error);
    error->status = status;
    error->text = text;
    return false;
}

bool pv_error_errno(PvError *error, const char *format, ...)
{
    int code = errno;
    bool machine = code == ENOSPC || code == ENOMEM || code == EDQUOT || code == EMFILE ||
                   code == ENFILE || code == EIO || code == EROFS || code == EFBIG;
    va_list list;
    va_start(list, format);
    char *text = format_text(format, list);
    va_end(list);
    pv_error(error, machine ? PV_MACHINE : PV_WRONG, "%s: %s", text ? text : "", strerror(code));
    free(text);
    return false;
}

bool pv_error_append(PvError *error, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    char *added = format_text(format, list), *text = NULL;
    va_end(list);
    if (added && asprintf(&text, "%s%s", error->text ? error->text : "", added) >= 0) {
        free(error->text);
        error->text = text;
    }
    free(added);
    return false;
}

bool pv_error_prefix(PvError *error, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    char *added = format_text(format, list), *text = NULL;
    va_end(list);
    if (added && asprintf(&text, "%s: %s", added, error->text ? error->text : "") >= 0) {
        free(error->text);
        error->text = text;
    }
    free(added);
    return false;
}

bool pv_error_hint(PvError *error, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    char *hint = format_text(format, list);
    va_end(list);
    free(error->hint);
    error->hint = hint;
    return false;
}

void pv_error_free(PvError *error)
{
    free(error->text);
    free(error->hint);
    *error = (PvError){0};
}

void pv_error_print(const PvError *error)
{
    fflush(stdout);
    fprintf(stderr, "%s: error: %s\n", program, error->text ? error->text : "not enough memory");
    if (error->hint)
        fprintf(stderr, "  = help: %s\n", error->hint);
}

void pv_warn(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    char *text = format_text(format, list);
    va_end(list);
    fprintf(stderr, "%s: warning: %s\n", program, text ? text : "");
    free(text);
}

_Noreturn void pv_fail(PvStatus status, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    char *text = format_text(format, list);
    va_end(list);
    PvError error = {.status = status, .text = text};
    pv_fail_with(&error);
}

_Noreturn void pv_fail_with(const PvError *error)
{
    pv_error_print(error);
    exit(error->status == PV_DONE ? PV_WRONG : (int)error->status);
}

void *pv_try_alloc(size_t size, const char *what, PvError *error)
{
    void *memory = size > PTRDIFF_MAX ? NULL : calloc(1, size ? size : 1);
    if (!memory) {
        char text[32];
        pv_error(error, PV_MACHINE, "not enough memory: %s for %s",
                 pv_size_text(text, (double)size), what);
    }
    return memory;
}

void *pv_alloc(size_t size)
{
    void *memory = calloc(1, size ? size : 1);
    if (!memory)
        pv_fail(PV_MACHINE, "not enough memory");
    return memory;
}

char *pv_strdup(const char *text)
{
    char *copy = strdup(text);
    if (!copy)
        pv_fail(PV_MACHINE, "not enough memory");
    return copy;
}

char *pv_printf(const char *format, ...)
{
    va_list list;
    char *text = NULL;
    va_start(list, format);
    int length = vasprintf(&text, format, list);
    va_end(list);
    if (length < 0)
        pv_fail(PV_MACHINE, "not enough memory");
    return text;
}

void *pv_grow(void *items, size_t *capacity, size_t count, size_t element_size)
{
    if (count < *capacity)
        return items;
    size_t wanted = *capacity ? *capacity * 2 : 16;
    void *grown = reallocarray(items, wanted, element_size);
    if (!grown)
        pv_fail(PV_MACHINE, "not enough memory");
    memset((char *)grown + *capacity * element_size, 0, (wanted - *capacity) * element_size);
    *capacity = wanted;
    return grown;
}

char *pv_size_text(char *text, double bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    int unit = 0;
    while (bytes >= 1024 && unit < 6) {
        bytes /= 1024;
        unit++;
    }
    snprintf(text, 32, unit == 0 || bytes >= 100 ? "%.0f %s" : "%.3g %s", bytes, units[unit]);
    return text;
}
