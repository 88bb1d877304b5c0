// The native part of the simulated card as one file for the compiler: torch's headers take it longer than all that is
// here, and are read once.

#include "attention.cpp"
#include "reduction.cpp"
#include "scratch.cpp"
#include "device.cpp"
#include "values.cpp"
#include "operation.cpp"
#include "call.cpp"
#include "certain.cpp"
#include "shapes.cpp"
#include "copies.cpp"
#include "marks.cpp"
#include "workspaces.cpp"
#include "kernels.cpp"
#include "places.cpp"
#include "storages.cpp"
#include "threads.cpp"
