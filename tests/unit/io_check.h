// A folder of the test's own, and checks of errors: for tests of files.
#ifndef IO_CHECK_H
#define IO_CHECK_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "runtime/error.h"

static char folder[] = "/tmp/pvdm-test-io-XXXXXX";

// A path in the test's folder; four at a time.
static const char *in(const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static void expect(PvError *error, PvStatus status, const char *part)
{
    assert_non_null(error->text);
    if (!strstr(error->text, part))
        fail_msg("expected '%s' in: %s", part, error->text);
    assert_int_equal(error->status, status);
    pv_error_free(error);
}

static void expect_fine(bool fine, PvError *error)
{
    if (!fine)
        fail_msg("%s", error->text);
    assert_null(error->text);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[600];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

#endif
