// Errors of an executable. A function that can fail on what the world gives it (files, options,
// memory) takes a PvError as its last argument, returns false or NULL, and leaves the message
// there; only the command line turns a message into an exit. The status is the exit status.
#ifndef PVDM_ERROR_H
#define PVDM_ERROR_H

#include <stdbool.h>
#include <stddef.h>

typedef enum {
    PV_DONE = 0,
    PV_WRONG = 1,   // the input is wrong: a file, a value
    PV_USAGE = 2,   // the command line is wrong
    PV_MACHINE = 3, // the machine lacks something: memory, disk space, a library, a device
} PvStatus;

// Starts as PvError error = {0}. Text and hint are malloc'ed; both may be NULL.
typedef struct {
    PvStatus status;
    char *text; // lower case, one fact; may have further lines
    char *hint; // what would mend it
} PvError;

// Sets the message (an earlier one of this object is dropped). Always false, so that a reader can
// say: return pv_error(error, PV_WRONG, "%s: not a PNG file", path);
bool pv_error(PvError *error, PvStatus status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
// The same with ": " and what errno says at the end: lack of space or memory is PV_MACHINE, all
// else PV_WRONG.
bool pv_error_errno(PvError *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Adds text at the end of the message. Always false.
bool pv_error_append(PvError *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Puts text and ": " before the message. Always false.
bool pv_error_prefix(PvError *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Sets the hint. Always false.
bool pv_error_hint(PvError *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
void pv_error_free(PvError *error); // and makes it empty

// "NAME: error: TEXT" and "  = help: HINT" on stderr, under the name given to pv_set_program.
void pv_error_print(const PvError *error);
void pv_set_program(const char *name); // kept by pointer
const char *pv_program(void);
void pv_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Prints and exits with the status. For command lines and for broken promises only.
_Noreturn void pv_fail(PvStatus status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
_Noreturn void pv_fail_with(const PvError *error);

// malloc that reports: NULL with "not enough memory: SIZE for WHAT" (PV_MACHINE). Zeroed.
void *pv_try_alloc(size_t size, const char *what, PvError *error);
// For small things: exits with status 3 when there is no memory. Zeroed.
void *pv_alloc(size_t size);
char *pv_strdup(const char *text);
char *pv_printf(const char *format, ...) __attribute__((format(printf, 1, 2))); // malloc'ed
// Makes room for one more element of a malloc'ed array; exits with status 3 without memory.
void *pv_grow(void *items, size_t *capacity, size_t count, size_t element_size);
// "1.25 GiB", "17 MiB", "312 bytes" into text (at least 32 bytes); returns text.
char *pv_size_text(char *text, double bytes);

#endif
