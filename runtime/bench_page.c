// The report of `bench` as one page that needs nothing else: bench_page.html with the JSON object
// in it. The page's script draws the ladder, the roofline and the graph from that object.
#include <stdlib.h>
#include <string.h>

#include "runtime/bench.h"
#include "runtime/file.h"

__asm__(".section .rodata\n.globl pv_bench_html\npv_bench_html:\n.incbin \"" PV_BENCH_HTML
        "\"\n.byte 0\n.previous");
extern const char pv_bench_html[];

static const char marker[] = "@REPORT@";

// The JSON text, safe inside a script element: "</" would end it.
static char *script_text(const json_t *report)
{
    char *text = json_dumps(report, JSON_COMPACT | JSON_REAL_PRECISION(6));
    if (!text)
        return NULL;
    char *safe = pv_alloc(6 * strlen(text) + 1), *to = safe;
    for (const char *from = text; *from; from++) {
        *to++ = *from;
        if (from[0] == '<')
            to += sprintf(to - 1, "\\u003c") - 1;
    }
    free(text);
    return safe;
}

bool pv_bench_page(const char *path, const json_t *report, PvError *error)
{
    const char *place = strstr(pv_bench_html, marker);
    char *text = script_text(report);
    if (!text || !place) {
        free(text);
        return pv_error(error, PV_MACHINE, "not enough memory for the page");
    }
    char *page = pv_printf("%.*s%s%s", (int)(place - pv_bench_html), pv_bench_html, text,
                           place + sizeof marker - 1);
    bool good = pv_file_replace(path, page, strlen(page), error);
    free(page);
    free(text);
    return good;
}
