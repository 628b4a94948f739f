"""The ClientApp."""

import time

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from stock.task import load_data, new_model, train

app = ClientApp()


@app.train()
def fit(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    config = context.run_config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = new_model(config).to(device)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    loader = load_data(int(context.node_config["partition-id"]), config)
    clock = time.perf_counter()
    loss = train(model, loader, int(config["local-steps"]), float(config["learning-rate"]), device)
    compute = time.perf_counter() - clock
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: value.cpu() for name, value in model.state_dict().items()}),
            "metrics": MetricRecord({"train_loss": loss, "compute": compute, "num-examples": len(loader.dataset)}),
        }
    )
    return Message(content=content, reply_to=message)
