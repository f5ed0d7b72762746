// --emit html: one page with the graph after each pass and the map of the arena (html.c).
#ifndef PVDMC_HTML_H
#define PVDMC_HTML_H

#include "compiler/plan.h"

typedef struct Html Html;
Html *html_new(const Sources *sources);
// The module's graph as a pass left it.
void html_graph(Html *html, const char *pass, const Module *module);
// Groups of plans after fusion; launches and buffers once memory is planned. Plans with taps are
// left out; `kernel_name` as for print_plan.
void html_groups(Html *html, Work *const *plans, uint32_t count);
void html_plans(Html *html, Work *const *plans, uint32_t count,
                const char *(*kernel_name)(uint32_t kernel));
void html_write(Html *html, FILE *out, const Module *module);

#endif
