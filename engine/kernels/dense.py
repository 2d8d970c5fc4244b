"""The fully connected layer, forward and backward, with ReLU fused in.

    forward      y[b, o] = act(bias[o] + sum_i x[b, i] * w[i, o])          act is the identity or max(., 0)
    gate         g[b, o] = dy[b, o] where y[b, o] > 0, else 0              (ReLU only, in place)
    parameters   dw[i, o] = sum_b x[b, i] * g[b, o]        dbias[o] = sum_b g[b, o]
    inputs       dx[b, i] = sum_o g[b, o] * wt[o, i]

    inputs x [batch][inputs]   weights w [inputs][outputs]   weights_t wt [outputs][inputs]   bias [outputs]
    outputs y and grad_outputs dy [batch][outputs]; everything float32 and C-contiguous.

Why this layout: the innermost loop always walks *independent* results (outputs, or inputs for dx), so LLVM makes
vectors of it without touching the order in which any one result is summed: ascending i, b or o, one rounding per
product and one per addition. Four terms are added per pass over a row, in that same order, only to save loads and
stores. The result is therefore the same on every processor, whatever its vector width.
"""

from engine.kernels._jit import kernel


@kernel
def dense_forward(inputs, weights, bias, relu, outputs):
    """Fill `outputs`; a NaN stays a NaN through ReLU, so that trouble is seen and not hidden."""
    batch, width = inputs.shape
    count = bias.shape[0]
    blocked = width - width % 4
    for b in range(batch):
        for o in range(count):
            outputs[b, o] = bias[o]
        for i in range(0, blocked, 4):
            x0 = inputs[b, i]
            x1 = inputs[b, i + 1]
            x2 = inputs[b, i + 2]
            x3 = inputs[b, i + 3]
            for o in range(count):
                total = outputs[b, o] + x0 * weights[i, o]
                total = total + x1 * weights[i + 1, o]
                total = total + x2 * weights[i + 2, o]
                outputs[b, o] = total + x3 * weights[i + 3, o]
        for i in range(blocked, width):
            x0 = inputs[b, i]
            for o in range(count):
                outputs[b, o] = outputs[b, o] + x0 * weights[i, o]
        if relu:
            for o in range(count):
                if outputs[b, o] < 0.0:  # noqa: PLR1730  max() would make 0 of a NaN
                    outputs[b, o] = 0.0


@kernel
def dense_backward(inputs, outputs, relu, grad_outputs, grad_weights, grad_bias):  # noqa: PLR0917
    """Gate `grad_outputs` in place, then fill `grad_weights` and `grad_bias` (sums over the batch)."""
    batch, width = inputs.shape
    count = grad_bias.shape[0]
    blocked = batch - batch % 4
    for o in range(count):
        grad_bias[o] = 0.0
    for b in range(batch):
        for o in range(count):
            if relu and not outputs[b, o] > 0.0:
                grad_outputs[b, o] = 0.0
            grad_bias[o] = grad_bias[o] + grad_outputs[b, o]
    for i in range(width):
        for o in range(count):
            grad_weights[i, o] = 0.0
        for b in range(0, blocked, 4):
            x0 = inputs[b, i]
            x1 = inputs[b + 1, i]
            x2 = inputs[b + 2, i]
            x3 = inputs[b + 3, i]
            for o in range(count):
                total = grad_weights[i, o] + x0 * grad_outputs[b, o]
                total = total + x1 * grad_outputs[b + 1, o]
                total = total + x2 * grad_outputs[b + 2, o]
                grad_weights[i, o] = total + x3 * grad_outputs[b + 3, o]
        for b in range(blocked, batch):
            x0 = inputs[b, i]
            for o in range(count):
                grad_weights[i, o] = grad_weights[i, o] + x0 * grad_outputs[b, o]


@kernel
def dense_backward_inputs(weights_t, grad_outputs, grad_inputs):
    """Fill `grad_inputs` from the already gated `grad_outputs`; not needed for a model's first layer."""
    count, width = weights_t.shape
    blocked = count - count % 4
    for b in range(grad_outputs.shape[0]):
        for i in range(width):
            grad_inputs[b, i] = 0.0
        for o in range(0, blocked, 4):
            g0 = grad_outputs[b, o]
            g1 = grad_outputs[b, o + 1]
            g2 = grad_outputs[b, o + 2]
            g3 = grad_outputs[b, o + 3]
            for i in range(width):
                total = grad_inputs[b, i] + g0 * weights_t[o, i]
                total = total + g1 * weights_t[o + 1, i]
                total = total + g2 * weights_t[o + 2, i]
                grad_inputs[b, i] = total + g3 * weights_t[o + 3, i]
        for o in range(blocked, count):
            g0 = grad_outputs[b, o]
            for i in range(width):
                grad_inputs[b, i] = grad_inputs[b, i] + g0 * weights_t[o, i]
