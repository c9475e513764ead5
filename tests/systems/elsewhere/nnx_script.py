import jax
import jax.numpy as jnp
import optax
from flax import nnx


class Mlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(8, 16, rngs=rngs)
        self.out = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


x = jax.random.normal(jax.random.key(0), (32, 8))
y = jnp.sin(x.sum(axis=1, keepdims=True))
graphdef, params = nnx.split(Mlp(nnx.Rngs(1)), nnx.Param)
tx = optax.adam(1e-2)
opt_state = tx.init(params)


@jax.jit
def train_step(params, opt_state, x, y):
    def loss_fn(params):
        model = nnx.merge(graphdef, params)
        return jnp.mean((model(x) - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


losses = []
for _ in range(20):
    params, opt_state, loss = train_step(params, opt_state, x, y)
    losses.append(float(loss))
trained = params
