import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(1)(x)


x = jax.random.normal(jax.random.key(0), (32, 8))
y = jnp.sin(x.sum(axis=1, keepdims=True))
model = Mlp()
params = model.init(jax.random.key(1), x)["params"]
tx = optax.adam(1e-2)
state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@jax.jit
def train_step(state, x, y):
    def loss_fn(params):
        pred = state.apply_fn({"params": params}, x)
        return jnp.mean((pred - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


losses = []
for _ in range(20):
    state, loss = train_step(state, x, y)
    losses.append(float(loss))
trained = state.params
