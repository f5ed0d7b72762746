// The tables of an executable's CUDA side: kernels, and images by module and architecture.
//
// Images are bytes of a file of their own (pv_images), which the assembler takes in whole; tables
// point into it.
#include <string.h>

#include "codegen/codegen.h"

static void write_list(FILE *out, const uint32_t *numbers, uint32_t count)
{
    fprintf(out, "{");
    for (uint32_t i = 0; i < count; i++)
        fprintf(out, "%s%u", i ? ", " : "", numbers[i]);
    fprintf(out, "}");
}

// Each shape function once.
static void write_shapes(const Codegen *cg, FILE *out)
{
    for (uint32_t i = 0; i < cg->cuda_kernel_count; i++) {
        uint32_t k = 0;
        while (strcmp(cg->cuda_kernels[k].choice.shape, cg->cuda_kernels[i].choice.shape) != 0)
            k++;
        if (k == i)
            fprintf(out, "PvCudaShape %s;\n", cg->cuda_kernels[i].choice.shape);
    }
}

static void write_kernel(const CudaKernel *kernel, FILE *out)
{
    const CudaChoice *choice = &kernel->choice;
    fprintf(out, "    {\"%s\", %u, %u, %u, ", kernel->symbol, kernel->module, choice->phases,
            kernel->segments);
    write_list(out, choice->threads, choice->phases);
    fprintf(out, ", ");
    write_list(out, choice->shared, choice->phases);
    fprintf(out, ", {");
    for (uint32_t i = 0; i < PV_CUDA_BAKED; i++)
        fprintf(out, "%s%d", i ? ", " : "", choice->baked[i]);
    fprintf(out, "}, %s, %u, ", choice->shape, choice->maps);
    write_list(out, choice->resident, choice->phases);
    fprintf(out, "},\n");
}

void emit_cuda_tables(const Codegen *cg, FILE *out)
{
    write_shapes(cg, out);
    fprintf(out, "static const PvCudaKernel cuda_kernels[] = {\n");
    for (uint32_t i = 0; i < cg->cuda_kernel_count; i++)
        write_kernel(&cg->cuda_kernels[i], out);
    fprintf(out, "};\nstatic const char *const cuda_names[] = {");
    for (uint32_t i = 0; i < cg->cuda_runtime_count; i++)
        fprintf(out, "\"%s\", ", cg->cuda_runtime_names[i]);
    fprintf(out, "0};\nextern const char pv_images[];\n"
                 "static const PvCudaImage cuda_images[] = {\n");
    for (uint32_t i = 0; i < cg->cuda_image_count; i++) {
        const CudaImage *image = &cg->cuda_images[i];
        fprintf(out, "    {%u, %u, %d, %d, pv_images + %zu, %zu},\n", image->module, image->arch,
                image->specific, image->ptx, image->offset, image->size);
    }
    // kernels of the runtime come first
    fprintf(out,
            "};\nstatic const PvCuda cuda = {%u, cuda_images, %u, cuda_kernels, %u, cuda_names, "
            "%u};\n",
            cg->cuda_modules, cg->cuda_image_count, cg->cuda_runtime_count, cg->cuda_version);
}
