// The kernels of csrc, run by the emulator, as Python functions on numpy arrays. One function a kernel, under its name,
// for float32 and float64: the kernel's own arguments (arrays C-contiguous and of its dtype, None for null), sizes
// taken from the shapes, then grid and threads. Outputs are arrays of the caller.

#include <cuda_runtime.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "dynamics/projected_sgd.cuh"
#include "dynamics/tangent_sweep.cuh"
#include "faults.cuh"
#include "hessian/block.cuh"
#include "layers/activation.cuh"
#include "layers/conv_lanes.cuh"
#include "layers/norm_tangent.cuh"
#include "losses/bce.cuh"
#include "losses/cross_entropy.cuh"
#include "losses/mse.cuh"
#include "tangent_operands.h"

namespace py = pybind11;
using namespace chaos_ext;

namespace {

// A numpy array that is what the kernel needs; pybind11's own type would pass a converted copy, and lose the outputs.
template <typename T, int Flags = py::array::c_style>
class Array : public py::array_t<T, Flags> {
 public:
  using py::array_t<T, Flags>::array_t;
};

template <typename T>
using Maybe = std::optional<Array<T>>;

template <typename T>
const T* in(const Array<T>& a) {
  return a.size() == 0 ? nullptr : a.data();
}

template <typename T>
const T* in(const Maybe<T>& a) {
  return a ? in(*a) : nullptr;
}

template <typename T>
T* out(Array<T>& a) {
  return a.size() == 0 ? nullptr : a.mutable_data();
}

template <typename T>
void bind_losses(py::module_& m) {
  m.def("sum_partials_kernel", [](const Array<double>& partial, double scale, Array<T> total, int grid, int threads) {
    emulator::launch(grid, threads, [&] { sum_partials_kernel<T>(in(partial), partial.size(), scale, out(total)); });
  });
  m.def("mse_kernel", [](const Array<T>& z, const Array<T>& y, T scale, Array<T> delta, Array<double> partial, int grid,
                         int threads) {
    emulator::launch(grid, threads, [&] { mse_kernel<T>(in(z), in(y), scale, z.size(), out(delta), out(partial)); });
  });
  m.def("bce_kernel", [](const Array<T>& z, const Array<T>& y, const Maybe<T>& w, const Maybe<T>& pw, T scale,
                         Array<T> delta, Array<T> curvature, Array<double> partial, int grid, int threads) {
    emulator::launch(grid, threads, [&] {
      bce_kernel<T>(in(z), in(y), in(w), in(pw), scale, z.size(), out(delta), out(curvature), out(partial));
    });
  });
  m.def("cross_entropy_kernel", [](const Array<T>& z, const Array<T>& t, Array<T> delta, Array<T> p,
                                   Array<double> row_loss, int grid, int threads) {
    emulator::launch(grid, threads, [&] {
      cross_entropy_kernel<T>(in(z), in(t), z.shape(0), z.shape(1), out(delta), out(p), out(row_loss));
    });
  });
  m.def("cross_entropy_labels_kernel", [](const Array<T>& z, const Array<int64_t>& y, T own, T others, Array<T> delta,
                                          Array<T> p, Array<double> row_loss, int grid, int threads) {
    emulator::launch(grid, threads, [&] {
      cross_entropy_labels_kernel<T>(in(z), in(y), own, others, z.shape(0), z.shape(1), out(delta), out(p),
                                     out(row_loss));
    });
  });
  m.def("cross_entropy_tangent_kernel",
        [](const Array<T>& p, const Array<T>& s, const Array<T>& dz, Array<T> result, int grid, int threads) {
          emulator::launch(grid, threads, [&] {
            cross_entropy_tangent_kernel<T>(in(p), in(s), in(dz), dz.shape(2), p.shape(0), p.shape(1), out(result));
          });
        });
}

ConvShape conv_shape(const std::vector<int64_t>& v) {
  return {v[0], v[1],  v[2],  v[3],  v[4],  v[5],  v[6],  v[7],  v[8],
          v[9], v[10], v[11], v[12], v[13], v[14], v[15], v[16], v[17]};
}

template <typename T>
void bind_conv_lanes(py::module_& m) {
  m.def("conv_lanes_kernel", [](const Array<T>& scalars, const Array<T>& lanes, const std::vector<int64_t>& shape,
                                int64_t kind, bool accumulate, Array<T> result, int grid, int threads) {
    const ConvShape s = conv_shape(shape);
    const auto run = [&](auto tag) {
      emulator::launch(grid, threads, [&] {
        conv_lanes_kernel<decltype(tag)::value, T>(in(scalars), in(lanes), s, result.size() / s.k, accumulate,
                                                   out(result));
      });
    };
    switch (kind) {
      case 0: return run(std::integral_constant<int, 0>{});
      case 1: return run(std::integral_constant<int, 1>{});
      case 2: return run(std::integral_constant<int, 2>{});
      case 3: return run(std::integral_constant<int, 3>{});
      case 4: return run(std::integral_constant<int, 4>{});
      case 5: return run(std::integral_constant<int, 5>{});
    }
  });
}

// Both operators; without delta it is the forward one. The block size is the kernel's own.
template <typename T>
void bind_norm_tangent(py::module_& m) {
  m.def("norm_tangent_kernel", [](Array<T> result, Maybe<T> dweight, Maybe<T> dbias, const Array<T>& xh,
                                  const Array<T>& r, const Maybe<T>& delta, const Maybe<T>& d, const Maybe<T>& ddelta,
                                  const Maybe<T>& gamma, const Maybe<T>& dgamma, const Maybe<T>& dbeta, int grid) {
    NormProblem<T> q{};
    q.s = {result.shape(0), result.shape(1), result.shape(2), result.shape(3)};
    q.out = out(result);
    q.dweight = dweight ? out(*dweight) : nullptr;
    q.dbias = dbias ? out(*dbias) : nullptr;
    q.d = in(d);
    q.ddelta = in(ddelta);
    q.xh = in(xh);
    q.delta = in(delta);
    q.r = in(r);
    q.gamma = in(gamma);
    q.dgamma = in(dgamma);
    q.dbeta = in(dbeta);
    emulator::launch(grid, dim3(kNormColumns, kNormRows),
                     [&] { delta ? norm_tangent_kernel<true, T>(q) : norm_tangent_kernel<false, T>(q); });
  });
}

template <typename T>
void bind_activation(py::module_& m) {
  m.def("activation_kernel",
        [](const Array<T>& z, int kind, T alpha, T beta, Array<T> a, Array<T> d1, Maybe<T> d2, int grid, int threads) {
          T* d2_out = d2 ? out(*d2) : nullptr;
          dispatch_activation(static_cast<Activation>(kind), [&](auto tag) {
            constexpr Activation value = decltype(tag)::value;
            emulator::launch(grid, threads, [&] {
              activation_kernel<value, T>(in(z), z.size(), alpha, beta, out(a), out(d1), d2_out);
            });
          });
        });
}

template <typename T>
void bind_projected_sgd(py::module_& m) {
  m.def("projected_sgd_kernel", [](Array<T> param, const Array<T>& grad, const Array<T>& L, const Array<T>& R,
                                   Maybe<T> buf, bool first, T lr, T momentum, T dampening, T weight_decay,
                                   bool nesterov, bool maximize, int grid, int threads) {
    const SgdOptions<T> options{lr, momentum, dampening, weight_decay, nesterov, maximize, first};
    T* buffer = buf ? out(*buf) : nullptr;
    emulator::launch(grid, threads, [&] {
      projected_sgd_kernel<T>(out(param), in(grad), in(L), in(R), buffer, options, L.shape(0), L.shape(1), R.shape(1));
    });
  });
}

// With squares it updates Y, else it stores the product. Y may have a row stride. in_shared: where the tangents lie;
// keeps_theta: whether its columns lie there too.
template <typename T>
void bind_tangent_sweep(py::module_& m) {
  using emulator::Arrays;
  m.def("tangent_sweep_kernel",
        [](Array<T, 0> Y, const Arrays<T>& operands, const std::vector<int64_t>& values,
           const std::vector<int64_t>& nodes, const std::vector<double>& factors, const Arrays<T>& vectors,
           const std::vector<int64_t>& slots, const std::vector<double>& coefficients, int64_t P, int w, bool in_shared,
           bool keeps_theta, Maybe<T> result, Maybe<T> squares, int threads) {
          const SweepLists<T> lists{emulator::operands_of(operands), values, nodes, factors};
          const ProgramBuilder<T> builder("tangent_sweep_kernel", Y.shape(0), lists);
          const TangentProgram<T>& program = builder.program();
          const UpdateLists<T> updates{emulator::operands_of(vectors), slots, coefficients};
          const UpdateList<T> list =
              squares ? update_list(read_slots<T>(Y.shape(0), updates), program) : product_list(program, P);
          const int64_t k = Y.shape(1), rows = std::max<int64_t>(program.scratch_rows, threads / w);
          const auto blocks = static_cast<unsigned>((k + w - 1) / w);
          const int64_t numbers = (in_shared ? rows * w : 0) + (keeps_theta ? P * w : 0);
          emulator::shared_words().assign((numbers * sizeof(T) + 7) / 8, NAN);
          std::vector<T> global(in_shared ? 0 : blocks * rows * w, T(NAN));
          const int64_t ld = Y.strides(0) / static_cast<int64_t>(sizeof(T));
          emulator::launch(blocks, threads, [&] {
            const auto kernel = has_norms(program) ? tangent_sweep_kernel<T, true> : tangent_sweep_kernel<T, false>;
            kernel(program, list, Y.mutable_data(), ld, P, k, w, result ? out(*result) : nullptr,
                   in_shared ? nullptr : global.data(), rows, keeps_theta, squares ? out(*squares) : nullptr);
          });
        });
  m.def("tangent_update_kernel",
        [](Array<T, 0> Y, const Array<T>& HY, const Arrays<T>& vectors, const std::vector<int64_t>& slots,
           const std::vector<double>& coefficients, int w, Array<T> squares, int threads) {
          const UpdateLists<T> updates{emulator::operands_of(vectors), slots, coefficients};
          const UpdateList<T> list = part_of(read_slots<T>(Y.shape(0), updates), 0);
          const int64_t k = Y.shape(1), ld = Y.strides(0) / static_cast<int64_t>(sizeof(T));
          emulator::shared_words().assign((threads * sizeof(T) + 7) / 8, NAN);
          const dim3 grid(static_cast<unsigned>((k + w - 1) / w), static_cast<unsigned>(squares.shape(0)));
          emulator::launch(grid, threads, [&] {
            tangent_update_kernel<T>(list, Y.mutable_data(), ld, in(HY), HY.shape(1), k, w, out(squares));
          });
        });
}

// H alone may have a row stride; the block size is the kernel's own.
template <typename T>
void bind_hessian_block(py::module_& m) {
  m.def("hessian_block_kernel",
        [](Array<T, 0> H, const Array<T>& a_s, const Maybe<T>& K, const Maybe<T>& a_t, const Maybe<T>& delta_t,
           const Maybe<T>& J, int64_t row_w, int64_t row_b, int64_t col_w, int64_t col_b, bool same, int grid) {
          if (H.strides(1) != sizeof(T)) throw py::value_error("expected H with contiguous rows");
          BlockProblem<T> q{};
          q.H = H.mutable_data();
          q.a_s = in(a_s);
          q.K = in(K);
          q.a_t = in(a_t);
          q.delta_t = in(delta_t);
          q.J = in(J);
          q.ld = H.strides(0) / static_cast<int64_t>(sizeof(T));
          q.N = a_s.shape(0);
          q.I_s = a_s.shape(1);
          q.O_s = K ? K->shape(0) : J->shape(0);
          q.O_t = K ? K->shape(2) : delta_t->shape(1);
          q.I_t = a_t ? a_t->shape(1) : (J ? J->shape(2) : q.I_s);
          q.row = {row_w, row_b};
          q.col = {col_w, col_b};
          q.has_K = K.has_value();
          q.has_J = J.has_value();
          const int64_t tiles = q.O_s * q.O_t * (q.I_s / kBlockTile + 1) * (q.I_t / kBlockTile + 1);
          emulator::launch(grid, dim3(kBlockTile, kBlockRows), [&] { hessian_block_kernel<T>(q, same, tiles); });
        });
}

void bind_faults(py::module_ m) {
  const auto bind = [&m](const char* name, void (*kernel)(float*)) {
    m.def(name, [kernel](Array<float> result) {
      emulator::launch(1, static_cast<unsigned>(result.size()), [&] { kernel(out(result)); });
    });
  };
  bind("early_return_kernel", faults::early_return_kernel);
  bind("two_barriers_kernel", faults::two_barriers_kernel);
  bind("half_warp_kernel", faults::half_warp_kernel);
  bind("shared_overrun_kernel", faults::shared_overrun_kernel);
  bind("local_overrun_kernel", faults::local_overrun_kernel);
  m.def("global_overrun_kernel", [](Array<float> result) {
    emulator::launch(1, 32, [&] { faults::global_overrun_kernel(out(result), result.size()); });
  });
  m.def("missing_barrier_kernel", [](Array<float> result, float start) {
    emulator::launch(1, kWarpSize, [&] { faults::missing_barrier_kernel(out(result), start); });
  });
  m.def("overflow_kernel", [](Array<float> result, int size) {
    emulator::launch(1, 32, [&] { faults::overflow_kernel(out(result), size); });
  });
}

}  // namespace

PYBIND11_MODULE(emulated_kernels, m) {
  bind_losses<float>(m);
  bind_losses<double>(m);
  bind_activation<float>(m);
  bind_conv_lanes<float>(m);
  bind_conv_lanes<double>(m);
  bind_activation<double>(m);
  bind_norm_tangent<float>(m);
  bind_norm_tangent<double>(m);
  bind_projected_sgd<float>(m);
  bind_projected_sgd<double>(m);
  bind_hessian_block<float>(m);
  bind_hessian_block<double>(m);
  bind_tangent_sweep<float>(m);
  bind_tangent_sweep<double>(m);
  bind_faults(m.def_submodule("faults"));
  m.def("run_backwards", [](bool on) { emulator::Block::current().reversed = on; });
  m.def("is_sanitized", [] {
#if defined(__SANITIZE_ADDRESS__)
    return true;
#else
    return false;
#endif
  });
}
