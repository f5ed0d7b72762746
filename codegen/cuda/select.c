// Which family of templates a kernel of the library belongs to. Each family has a file select_*.c.
#include <string.h>

#include "codegen/cuda/select.h"

static const struct {
    const char *symbol;
    bool (*select)(const CudaLaunch *launch, CudaChoice *choice);
} families[] = {
    {"pv_gemm", cuda_select_gemm},
    {"pv_conv", cuda_select_conv},
    {"pv_conv_dgrad", cuda_select_conv},
    {"pv_conv_wgrad", cuda_select_conv},
    {"pv_attention", cuda_select_attention},
    {"pv_attention_grad", cuda_select_attention},
    {"pv_group_norm", cuda_select_norm},
    {"pv_group_norm_grad", cuda_select_norm},
    {"pv_layer_norm", cuda_select_norm},
    {"pv_layer_norm_grad", cuda_select_norm},
    {"pv_softmax", cuda_select_norm},
    {"pv_reduce", cuda_select_move},
    {"pv_reduce_int", cuda_select_move},
    {"pv_copy", cuda_select_move},
    {"pv_copy_to", cuda_select_move},
    {"pv_fill", cuda_select_move},
    {"pv_pick", cuda_select_move},
    {"pv_pick_grad", cuda_select_move},
    {"pv_gather", cuda_select_move},
    {"pv_gather_grad", cuda_select_move},
    {"pv_random", cuda_select_move},
};

bool cuda_select(const CudaLaunch *launch, CudaChoice *choice)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(families[i].symbol, launch->symbol) == 0) {
            *choice = (CudaChoice){.definitions = "", .phases = 1};
            return families[i].select(launch, choice);
        }
    return false;
}
