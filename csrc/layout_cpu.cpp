// What library _C was compiled with.

#include "layout.h"

CE_EXPORT_LAYOUT
