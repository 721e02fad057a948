// What library _C_cuda was compiled with.

#include "layout.h"

CE_EXPORT_LAYOUT
