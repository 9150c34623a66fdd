# ONNX Runtime in the folder ORT_HOME (a CMake or environment variable): include/ and, to link it, lib/.
# Defines onnxruntime::onnxruntime. fetch_onnxruntime.sh makes such a folder.
set(_hints ${ORT_HOME} $ENV{ORT_HOME})
find_path(OnnxRuntime_INCLUDE_DIR onnxruntime_c_api.h
    HINTS ${_hints} PATH_SUFFIXES include include/onnxruntime onnxruntime onnxruntime/core/session
    NO_CMAKE_FIND_ROOT_PATH)
find_library(OnnxRuntime_LIBRARY onnxruntime HINTS ${_hints} PATH_SUFFIXES lib lib64 NO_CMAKE_FIND_ROOT_PATH)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OnnxRuntime
    REQUIRED_VARS OnnxRuntime_INCLUDE_DIR
    REASON_FAILURE_MESSAGE "set ORT_HOME to a folder with include/onnxruntime_c_api.h, as fetch_onnxruntime.sh makes it")
if(OnnxRuntime_FOUND AND NOT TARGET onnxruntime::onnxruntime)
    add_library(onnxruntime::onnxruntime UNKNOWN IMPORTED)
    set_target_properties(onnxruntime::onnxruntime PROPERTIES INTERFACE_INCLUDE_DIRECTORIES ${OnnxRuntime_INCLUDE_DIR})
    if(OnnxRuntime_LIBRARY)
        set_target_properties(onnxruntime::onnxruntime PROPERTIES IMPORTED_LOCATION ${OnnxRuntime_LIBRARY})
    endif()
endif()
mark_as_advanced(OnnxRuntime_INCLUDE_DIR OnnxRuntime_LIBRARY)
