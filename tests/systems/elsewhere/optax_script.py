import jax
import jax.numpy as jnp
import optax


def predict(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"]


def loss_fn(params, x, y):
    return optax.l2_loss(predict(params, x), y).mean()


x = jax.random.normal(jax.random.key(0), (32, 8))
y = jnp.sin(x.sum(axis=1, keepdims=True))
init = jax.nn.initializers.lecun_normal()
hidden = {"kernel": init(jax.random.key(1), (8, 16)), "bias": jnp.zeros(16)}
params = {"hidden": hidden, "out": {"kernel": init(jax.random.key(2), (16, 1))}}
tx = optax.adam(1e-2)
opt_state = tx.init(params)


@jax.jit
def step(params, opt_state, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params, opt_state, loss


losses = []
for _ in range(20):
    params, opt_state, loss = step(params, opt_state, x, y)
    losses.append(float(loss))
trained = params
